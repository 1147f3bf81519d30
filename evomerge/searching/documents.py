"""Which documents are spent on which candidate.

Within a generation only the ranking of the candidates matters, and the mean of a generation says better where to go
than any one candidate does. So all candidates of a generation see the same few documents, in blocks, and each
generation sees fresh ones; the number of blocks follows how well they rank the candidates. Some documents are kept
apart: on growing numbers of them the candidate that the search holds to be best is compared with the incumbent.

Everything here is a pure function of the seed and of what the log holds.
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

BATCH = 24  # documents of a candidate
SELECT = 0.25  # share of the documents kept apart
ENOUGH = 6  # times the batch: where a fitness has fewer documents, every candidate sees all of them
_APART = 1 << 64  # of its seeds from the samplers'

Chosen = dict[str, list[int]]  # entry -> ids of its documents, ascending


class Fidelity(Strict):
    """Which documents are spent on which candidate. Each rule can be switched off by its name.

    Attributes:
        batch: documents of each candidate, the same for all of a generation and fresh each generation; `all` scores
            every candidate on all; `auto` is 24 for samplers that compare within a generation, where there are at
            least six times as many, else `all`.
        adapt: let the number of documents follow how reliably they rank a generation.
        select: the share of the documents kept apart, on which what the search holds to be best is compared with
            the best before it; `auto` is a quarter, and nothing where every candidate sees all.
        final: score the winner on all documents in the end, for the tables.
    """

    batch: Literal["auto", "all"] | Annotated[int, Field(ge=2)] = "auto"
    adapt: bool = True
    select: Literal["auto"] | Annotated[float, Field(ge=0.0, le=0.9)] = "auto"
    final: bool = True

    @model_validator(mode="before")
    @classmethod
    def _without_racing(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "race" not in data:
            return data
        if data["race"]:
            raise ValueError("race is no rule any more, for it was no better at equal documents; remove it")
        return {key: value for key, value in data.items() if key != "race"}

    def mini_batch(self, documents: int, *, fresh: bool) -> int | None:
        """Documents of a candidate; None for all of them.

        documents: how many there are. fresh: whether the sampler compares within a generation.
        """
        if self.batch == "all":
            return None
        if self.batch == "auto":
            return BATCH if fresh and documents >= ENOUGH * BATCH else None
        return self.batch if self.batch < documents else None


class Documents:
    """The search documents in blocks, and those kept apart.

    Args:
        objective: its entries have the documents; their shares say how many of a block are each entry's.
        batch: documents of a candidate; None for all.
        select: the share kept apart; of each entry at least one document serves the search.

    Attributes:
        block: documents of a block, over all entries.
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
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}  # of each entry, the last that was drawn from
        self.block = sum(self._quotas)
        self.selecting = sum(kept)

    @property
    def searching(self) -> int:
        """The number of documents that are not kept apart."""
        return self._objective.documents - self.selecting

    def draw(self, number: int) -> Chosen:
        """Block `number` of an endless row: each document once, in a random order, then again in another."""
        return {
            name: self._run(at, number * quota, quota)
            for at, (name, quota) in enumerate(zip(self._objective.sizes, self._quotas, strict=True))
        }

    def _run(self, at: int, start: int, count: int) -> list[int]:
        pool = self._search[at]
        ids: set[int] = set()
        for epoch in range(start // len(pool), (start + count - 1) // len(pool) + 1):
            order = self._order(at, epoch)
            first = max(start - epoch * len(pool), 0)
            ids.update(int(id_) for id_ in order[first : start + count - epoch * len(pool)])
        return sorted(ids)

    def _order(self, at: int, epoch: int) -> np.ndarray:
        """An entry's documents in the order of an epoch."""
        if self._epochs.get(at, (-1,))[0] != epoch:
            pool = self._search[at]
            self._epochs[at] = epoch, pool[_stream(self._seed, 2, at, epoch).permutation(len(pool))]
        return self._epochs[at][1]

    def select(self, share: float = 1.0) -> Chosen:
        """The first part of the documents kept apart; a larger share holds the smaller ones."""
        return {
            name: sorted(int(id_) for id_ in pool[: max(round(share * len(pool)), 1)])
            for name, pool in zip(self._objective.sizes, self._select, strict=True)
            if len(pool)
        }


def _stream(seed: int, *counters: int) -> np.random.Generator:
    return generator(seed + _APART, *counters)


def union(blocks: Sequence[Chosen]) -> Chosen:
    """The documents of several blocks together."""
    return {name: sorted({id_ for block in blocks for id_ in block[name]}) for name in blocks[0]}


def block_values(objective: Objective, blocks: Sequence[Chosen], scores: Scores) -> tuple[float, ...]:
    """The value on each block, from the scores on the union of the blocks."""
    places = {name: {id_: at for at, id_ in enumerate(ids)} for name, ids in union(blocks).items()}
    return tuple(
        objective.value({name: scores[name][[places[name][id_] for id_ in ids]] for name, ids in block.items()})
        for block in blocks
    )
