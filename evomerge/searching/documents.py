"""Which documents are spent on which candidate.

Within a generation only the ranking of the candidates matters, and the mean of a generation says better where to go
than any one candidate does. So all candidates of a generation see the same few documents, in blocks, and each
generation sees fresh ones. The number of blocks follows how well they rank the candidates (`reliability.py`).
Some documents are kept apart. On a growing number of them the candidate that the search holds to be best is
compared with the incumbent (`incumbent.py`).

Everything here is a pure function of the seed and of the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from evomerge.files.schema import Strict
from evomerge.searching.objective import Objective, Scores
from evomerge.searching.reliability import BLOCKS
from evomerge.searching.samplers import generator

BATCH = 24  # documents of a candidate, where the batch is `auto`
SELECT = 0.25  # share of the documents that is kept apart, where `select` is `auto`
ENOUGH = 6  # with fewer documents than so many batches, every candidate sees all of them
_APART = 1 << 64  # is added to the seed, so that documents are not drawn from the samplers' own streams

Chosen = dict[str, list[int]]  # entry -> ids of its documents, ascending


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


class Documents:
    """The search documents in blocks, and those kept apart.

    Args:
        objective: its entries have the documents, and the shares of the entries divide a block among them.
        batch: how many documents each candidate is scored on; None for all.
        select: the share that is kept apart, in [0, 0.9]. Each entry leaves at least one document to the search.

    Attributes:
        block: the number of documents in a block, over all entries.
        selecting: the number of documents kept apart.
    """

    def __init__(self, objective: Objective, seed: int, batch: int | None, select: float) -> None:
        self._objective, self._seed, self.batch = objective, seed, batch
        sizes = objective.sizes.values()
        orders = [_stream(seed, 1, at).permutation(size) for at, size in enumerate(sizes)]
        kept = [min(round(select * size), size - 1) for size in sizes]
        self._select = [order[:count] for order, count in zip(orders, kept, strict=True)]
        self._search = [order[count:] for order, count in zip(orders, kept, strict=True)]
        size = max((batch or 0) // BLOCKS, 1)
        self._quotas = [
            min(max(round(size * share), 1), len(pool))
            for share, pool in zip(objective.shares.values(), self._search, strict=True)
        ]
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}  # entry -> the last epoch drawn from, and its order
        self.block = sum(self._quotas)
        self.selecting = sum(kept)

    @property
    def searching(self) -> int:
        """The number of documents that are not kept apart."""
        return self._objective.documents - self.selecting

    def draw(self, number: int) -> Chosen:
        """The block of that number in an endless row: all documents in a random order, then again in another."""
        return {
            name: self._run(at, number * quota, quota)
            for at, (name, quota) in enumerate(zip(self._objective.sizes, self._quotas, strict=True))
        }

    def _run(self, at: int, start: int, count: int) -> list[int]:
        """The ids, ascending, at `count` places of an entry's endless row from `start` on."""
        pool = self._search[at]
        ids: set[int] = set()
        for epoch in range(start // len(pool), (start + count - 1) // len(pool) + 1):
            order = self._order(at, epoch)
            first = max(start - epoch * len(pool), 0)
            ids.update(int(id_) for id_ in order[first : start + count - epoch * len(pool)])
        return sorted(ids)

    def _order(self, at: int, epoch: int) -> np.ndarray:
        """The ids of an entry's documents in the order of an epoch, int64 (documents,)."""
        if self._epochs.get(at, (-1,))[0] != epoch:
            pool = self._search[at]
            self._epochs[at] = epoch, pool[_stream(self._seed, 2, at, epoch).permutation(len(pool))]
        return self._epochs[at][1]

    def select(self, share: float = 1.0) -> Chosen:
        """The first part of the documents kept apart. A larger share holds every smaller one.

        Args:
            share: of each entry's documents kept apart, in [0, 1]; at least one document is chosen.
        """
        return {
            name: sorted(int(id_) for id_ in pool[: max(round(share * len(pool)), 1)])
            for name, pool in zip(self._objective.sizes, self._select, strict=True)
            if len(pool)
        }


def _stream(seed: int, *counters: int) -> np.random.Generator:
    """A generator that is keyed by a seed and counters."""
    return generator(seed + _APART, *counters)


def union(blocks: Sequence[Chosen]) -> Chosen:
    """The documents of one or more blocks together, each once."""
    return {name: sorted({id_ for block in blocks for id_ in block[name]}) for name in blocks[0]}


def block_values(objective: Objective, blocks: Sequence[Chosen], scores: Scores) -> tuple[float, ...]:
    """The value on each block.

    Args:
        scores: entry -> the scores of its documents in the union of the blocks, float64 (documents,), in the order
            of their ids.
    """
    places = {name: {id_: at for at, id_ in enumerate(ids)} for name, ids in union(blocks).items()}
    return tuple(
        objective.value({name: scores[name][[places[name][id_] for id_ in ids]] for name, ids in block.items()})
        for block in blocks
    )
