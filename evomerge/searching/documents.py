"""Which documents are spent on which candidate.

Within a generation only the ranking of the better half matters, and a generation's mean says where to go better
than any one candidate does. So all candidates of a generation see the same few documents, in blocks, fresh each
generation; those that cannot reach the better half any more see fewer; and the number of blocks follows how well
they rank the candidates. Some documents are kept apart: on them, and on growing numbers of them, what the search
holds to be best is compared with the best known so far.

Everything here is a pure function of the seed and of what the log holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from evomerge.files.schema import Strict
from evomerge.searching.reliability import BLOCKS
from evomerge.searching.samplers import generator

BATCH = 24  # documents of a candidate


SELECT = 0.25  # share of the documents kept apart


ENOUGH = 6  # times the batch: where a fitness has fewer documents, every candidate sees all of them


LOOK_AFTER = 4  # times the documents kept apart: spent between two looks at the incumbent

_APART = 1 << 64  # of its seeds from the samplers'

Chosen = dict[str, list[int]]  # entry -> ids of its documents, ascending


class Fidelity(Strict):
    """Which documents are spent on which candidate. Each rule can be switched off by its name.

    Attributes:
        batch: documents of each candidate, the same for all of a generation and fresh each generation; `all` scores
            every candidate on all; `auto` is 24 for samplers that compare within a generation, where there are at
            least six times as many, else `all`.
        adapt: let the number of documents follow how reliably they rank a generation.
        race: stop candidates early that cannot reach the better half of their generation. Off by default: on the
            simulator it saved a tenth of the documents and lost as much in what was learned from them.
        select: the share of the documents kept apart, on which what the search holds to be best is compared with
            the best before it; `auto` is a quarter, and nothing where every candidate sees all.
        final: score the winner on all documents in the end, for the tables.
    """

    batch: Literal["auto", "all"] | Annotated[int, Field(ge=2)] = "auto"
    adapt: bool = True
    race: bool = False
    select: Literal["auto"] | Annotated[float, Field(ge=0.0, le=0.9)] = "auto"
    final: bool = True

    def mini_batch(self, documents: int, *, fresh: bool) -> int | None:
        """Documents of a candidate; None for all of them.

        documents: how many there are. fresh: whether the sampler compares within a generation.
        """
        if self.batch == "all":
            return None
        if self.batch == "auto":
            return BATCH if fresh and documents >= ENOUGH * BATCH else None
        return self.batch if self.batch < documents else None


@dataclass(frozen=True)
class Entry:
    """The documents of one fitness entry, and its share in the objective (all shares add up to 1)."""

    name: str
    documents: int
    share: float


class Documents:
    """The search documents in blocks, and those kept apart.

    Args:
        batch: documents of a candidate; None for all.
        select: the share kept apart; each entry keeps at least one document on either side.

    Attributes:
        block: documents of a block, over all entries.
    """

    def __init__(self, entries: Sequence[Entry], seed: int, batch: int | None, select: float) -> None:
        self.entries, self._seed = tuple(entries), seed
        self.batch = batch
        orders = [_stream(seed, 1, at).permutation(entry.documents) for at, entry in enumerate(entries)]
        kept = [min(round(select * entry.documents), entry.documents - 1) for entry in entries]
        self._select = [order[:count] for order, count in zip(orders, kept, strict=True)]
        self._search = [order[count:] for order, count in zip(orders, kept, strict=True)]
        size = max((batch or 0) // BLOCKS, 1)
        self._quotas = [
            min(max(round(size * entry.share), 1), len(pool))
            for entry, pool in zip(entries, self._search, strict=True)
        ]
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}  # of each entry, the last that was drawn from
        self.block = sum(self._quotas)
        self.selecting = sum(kept)

    @property
    def whole(self) -> int:
        """The number of all documents."""
        return sum(entry.documents for entry in self.entries)

    def draw(self, number: int) -> Chosen:
        """Block `number` of an endless row: each document once, in a random order, then again in another."""
        return {
            entry.name: self._run(at, number * quota, quota)
            for at, (entry, quota) in enumerate(zip(self.entries, self._quotas, strict=True))
        }

    def _run(self, at: int, start: int, count: int) -> list[int]:
        pool = self._search[at]
        found: set[int] = set()
        for epoch in range(start // len(pool), (start + count - 1) // len(pool) + 1):
            order = self._order(at, epoch)
            first = max(start - epoch * len(pool), 0)
            found.update(int(id_) for id_ in order[first : start + count - epoch * len(pool)])
        return sorted(found)

    def _order(self, at: int, epoch: int) -> np.ndarray:
        """An entry's documents in the order of an epoch."""
        if self._epochs.get(at, (-1,))[0] != epoch:
            pool = self._search[at]
            self._epochs[at] = epoch, pool[_stream(self._seed, 2, at, epoch).permutation(len(pool))]
        return self._epochs[at][1]

    def select(self, share: float = 1.0) -> Chosen:
        """The first part of the documents kept apart; a larger share holds the smaller ones. All, if none are."""
        pools = self._select if self.selecting else self._search
        found = {}
        for entry, pool in zip(self.entries, pools, strict=True):
            if len(pool):
                found[entry.name] = sorted(int(id_) for id_ in pool[: max(round(share * len(pool)), 1)])
        return found

    def value(self, scores: Mapping[str, np.ndarray]) -> float:
        """The weighted mean of the entries' means. scores: entry -> of its documents, float64 (documents,)."""
        named = [entry for entry in self.entries if len(scores.get(entry.name, ()))]
        total = sum(entry.share for entry in named)
        return float(sum(entry.share * scores[entry.name].mean() for entry in named) / total)


def _stream(seed: int, *counters: int) -> np.random.Generator:
    return generator(seed + _APART, *counters)


def union(blocks: Sequence[Chosen]) -> Chosen:
    """The documents of several blocks together."""
    return {name: sorted({id_ for block in blocks for id_ in block[name]}) for name in blocks[0]}


def block_values(
    documents: Documents, blocks: Sequence[Chosen], scores: Mapping[str, np.ndarray]
) -> tuple[float, ...]:
    """The value on each block, from the scores on their union."""
    places = {name: {id_: at for at, id_ in enumerate(ids)} for name, ids in union(blocks).items()}
    return tuple(
        documents.value({name: scores[name][[places[name][id_] for id_ in ids]] for name, ids in block.items()})
        for block in blocks
    )
