"""Which documents are spent on which candidate.

Within a generation only the ranking of the candidates matters, and the mean of a generation says better where to go
than any one candidate does. So all candidates of a generation see the same few documents, in blocks, and each
generation sees fresh ones. The number of blocks follows how well they rank the candidates (`reliability.py`).
Some documents are kept apart. On a growing number of them the candidate that the search holds to be best is
compared with the incumbent (`incumbent.py`).

The documents of each task come in a random order, and each comes once before any comes again. A value on some
documents is an unbiased estimate of that on all: `strata.py` says how a block is divided among tasks.

Everything here is a pure function of the seed and of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from evomerge.files.schema import Strict
from evomerge.searching.objective import Objective, Scores
from evomerge.searching.reliability import BLOCKS
from evomerge.searching.samplers import generator
from evomerge.searching.strata import apportioned, starts, strata, visits

BATCH = 24  # documents of a candidate, where the batch is `auto`
SELECT = 0.25  # share of the documents that is kept apart, where `select` is `auto`
ENOUGH = 6  # with fewer documents than so many batches, every candidate sees all of them
_APART = 1 << 64  # is added to the seed, so that documents are not drawn from the samplers' own streams


@dataclass(frozen=True)
class Chosen(Mapping[str, list[int]]):
    """Some documents: task -> ids, ascending, at least one. Tasks without documents are left out.

    Attributes:
        ids: the same as a dict.
        shares: task -> the share of the value that the mean over its documents has; the shares add up to 1.
    """

    ids: dict[str, list[int]]
    shares: dict[str, float]

    def __getitem__(self, task: str) -> list[int]:
        return self.ids[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def documents(self) -> int:
        """The number of documents of all tasks together."""
        return sum(map(len, self.ids.values()))


class Fidelity(Strict):
    """Which documents are spent on which candidate. Each rule can be switched off by its name.

    Attributes:
        batch: how many documents each candidate is scored on. All candidates of a generation get the same ones, and
            each generation fresh ones. `all` scores every candidate on all documents. `auto` is 24 for samplers
            that compare within a generation, where there are at least six times as many documents; else `all`.
        adapt: whether the number of documents follows how reliably they rank a generation.
        select: the share of the documents that is kept apart, in [0, 0.9]. On them the candidate that the search
            holds to be best is compared with the best before it. `auto` is a quarter, and 0 where every candidate
            sees all documents.
        final: whether the winner is scored on all documents in the end, for the tables.
    """

    batch: Literal["auto", "all"] | Annotated[int, Field(ge=2)] = "auto"
    adapt: bool = True
    select: Literal["auto"] | Annotated[float, Field(ge=0.0, le=0.9)] = "auto"
    final: bool = True

    @model_validator(mode="before")
    @classmethod
    def _without_racing(cls, data: Any) -> Any:
        """Refuses the key `race` of earlier versions where it is on, and drops it where it is off."""
        if not isinstance(data, Mapping) or "race" not in data:
            return data
        if data["race"]:
            raise ValueError("race is no rule any more, for it was no better at equal documents; remove it")
        return {key: value for key, value in data.items() if key != "race"}

    def mini_batch(self, documents: int, *, fresh: bool) -> int | None:
        """How many documents each candidate is scored on; None for all of them.

        Args:
            documents: the number of documents that there are.
            fresh: whether the sampler compares within a generation, so that each may have fresh documents.
        """
        if self.batch == "all":
            return None
        if self.batch == "auto":
            return BATCH if fresh and documents >= ENOUGH * BATCH else None
        return self.batch if self.batch < documents else None


@dataclass(frozen=True)
class _Stratum:
    """Tasks that are drawn from together.

    Attributes:
        tasks: their names.
        within: the share of each in the stratum; these add up to 1.
        share: the stratum's share of the value.
        quota: how many documents of it a block has.
        first: the start of block 0, see `strata.starts`.
    """

    tasks: tuple[str, ...]
    within: tuple[float, ...]
    share: float
    quota: int
    first: float


class Documents:
    """The search documents in blocks, and those kept apart.

    Args:
        objective: its tasks have the documents, and the shares of entries and tasks divide a block among them.
        batch: how many documents each candidate is scored on; None for all.
        select: the share that is kept apart, in [0, 0.9]. Each task leaves at least one document to the search, and
            where it has more and the share is above 0, it gives at least one.

    Attributes:
        block: the number of documents in a block, over all tasks.
        selecting: the number of documents kept apart.
    """

    def __init__(self, objective: Objective, seed: int, batch: int | None, select: float) -> None:
        self._objective, self._seed, self.batch = objective, seed, batch
        self._number = {task: at for at, task in enumerate(objective.sizes)}
        self._select: dict[str, np.ndarray] = {}
        self._search: dict[str, np.ndarray] = {}
        for task, size in objective.sizes.items():
            order = _stream(seed, 1, self._number[task]).permutation(size)
            kept = min(max(round(select * size), int(select > 0)), size - 1)
            self._select[task], self._search[task] = order[:kept], order[kept:]
        size = max((batch or 0) // BLOCKS, 1)
        self._strata = [one for entry in objective.groups for one in self._strata_of(entry, size)]
        self._epochs: dict[str, tuple[int, np.ndarray]] = {}  # task -> the last epoch drawn from, and its order
        self.block = sum(stratum.quota for stratum in self._strata)
        self.selecting = sum(map(len, self._select.values()))

    def _strata_of(self, entry: str, size: int) -> list[_Stratum]:
        """The strata of an entry, where all entries together have about `size` documents in a block."""
        shares = {task: self._objective.shares[task] for task in self._objective.groups[entry]}
        tasks, whole = list(shares), sum(shares.values())
        documents = max(round(size * whole), 1)
        joined = [
            [tasks[at] for at in one] for one in strata([share / whole for share in shares.values()], documents)
        ]
        totals = [sum(shares[task] for task in one) for one in joined]
        quotas = apportioned([total / whole for total in totals], documents)
        return [
            _Stratum(
                tasks=tuple(one),
                within=tuple(shares[task] / total for task in one),
                share=total,
                quota=min(quota, sum(len(self._search[task]) for task in one)),
                first=float(_stream(self._seed, 3, self._number[one[0]]).random()),
            )
            for one, total, quota in zip(joined, totals, quotas, strict=True)
        ]

    @property
    def searching(self) -> int:
        """The number of documents that are not kept apart."""
        return self._objective.documents - self.selecting

    def draw(self, number: int) -> Chosen:
        """The block of that number in an endless row: all documents in a random order, then again in another."""
        ids: dict[str, list[int]] = {}
        shares: dict[str, float] = {}
        for stratum in self._strata:
            for task, (before, count) in zip(stratum.tasks, self._visits(stratum, number), strict=True):
                if count:
                    ids[task] = self._run(task, before, count)
                    shares[task] = stratum.share * count / stratum.quota
        return Chosen({task: ids[task] for task in self._objective.sizes if task in ids}, shares)

    def _visits(self, stratum: _Stratum, number: int) -> list[tuple[int, int]]:
        """For each task, how many documents it gave before a block, and how many it gives to the block."""
        if len(stratum.tasks) == 1:
            return [(number * stratum.quota, stratum.quota)]
        counts = visits(stratum.within, stratum.quota, starts(stratum.first, number + 1))
        return list(zip(counts[:-1].sum(axis=0).tolist(), counts[-1].tolist(), strict=True))

    def _run(self, task: str, start: int, count: int) -> list[int]:
        """The ids, ascending, at `count` places of a task's endless row from `start` on."""
        pool = self._search[task]
        ids: set[int] = set()
        for epoch in range(start // len(pool), (start + count - 1) // len(pool) + 1):
            order = self._order(task, epoch)
            first = max(start - epoch * len(pool), 0)
            ids.update(int(id_) for id_ in order[first : start + count - epoch * len(pool)])
        return sorted(ids)

    def _order(self, task: str, epoch: int) -> np.ndarray:
        """The ids of a task's documents in the order of an epoch, int64 (documents,)."""
        if self._epochs.get(task, (-1,))[0] != epoch:
            pool = self._search[task]
            order = _stream(self._seed, 2, self._number[task], epoch).permutation(len(pool))
            self._epochs[task] = epoch, pool[order]
        return self._epochs[task][1]

    def select(self, share: float = 1.0) -> Chosen:
        """The first part of the documents kept apart. A larger share holds every smaller one.

        Args:
            share: of each task's documents kept apart, in [0, 1]; at least one document is chosen.
        """
        ids = {
            task: sorted(int(id_) for id_ in pool[: max(round(share * len(pool)), 1)])
            for task, pool in self._select.items()
            if len(pool)
        }
        return Chosen(ids, self._objective.shares_among(ids))


def _stream(seed: int, *counters: int) -> np.random.Generator:
    """A generator that is keyed by a seed and counters."""
    return generator(seed + _APART, *counters)


def union(blocks: Sequence[Chosen]) -> Chosen:
    """The documents of one or more blocks together, each once. A task's share is the mean of its shares in them."""
    ids = {task: sorted({id_ for one in blocks for id_ in one.get(task, ())}) for block in blocks for task in block}
    shares = {task: sum(block.shares.get(task, 0.0) for block in blocks) / len(blocks) for task in ids}
    return Chosen(ids, shares)


def block_values(objective: Objective, blocks: Sequence[Chosen], scores: Scores) -> tuple[float, ...]:
    """The value on each block.

    Args:
        scores: task -> the scores of its documents in the union of the blocks, float64 (documents,), in the order
            of their ids.
    """
    places = {name: {id_: at for at, id_ in enumerate(ids)} for name, ids in union(blocks).items()}
    return tuple(
        objective.value(
            {name: scores[name][[places[name][id_] for id_ in ids]] for name, ids in block.items()}, block.shares
        )
        for block in blocks
    )
