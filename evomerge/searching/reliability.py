"""How well a mini-batch ranks its candidates, and how many documents that asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCKS = 4  # that a batch consists of
MOST_BLOCKS = 16  # that a generation of the usual effort may have
_RELIABLE = (0.35, 0.75)  # below it a generation takes more blocks, above it fewer
_MIX = 0.3  # weight of a generation's reliability in the running one


# --- ranking by blocks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variance:
    """Two-way analysis of variance, candidates by blocks without repetition (Fisher 1925).

    between: of the candidates' true values. noise: of one candidate's value on one block, the block's own
    difficulty taken out.
    """

    between: float
    noise: float

    def reliability(self, blocks: int) -> float:
        """Share of the variance among the means over so many blocks that is the candidates' own, in [0, 1]."""
        total = self.between + self.noise / blocks
        return self.between / total if total > 0 else 0.0


def variance(values: np.ndarray) -> Variance:
    """values: float64 (candidates, blocks), at least two of either."""
    candidates, blocks = values.shape
    rows, columns = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    residual = values - rows - columns + values.mean()
    noise = float((residual**2).sum() / ((candidates - 1) * (blocks - 1)))
    between = float(blocks * rows.var(ddof=1))
    return Variance(max(between - noise, 0.0) / blocks, noise)


class Pace:
    """How many blocks the next generation gets.

    Fewer documents rank worse, but more generations can be had for the same documents: where a generation's ranking
    is reliable a block is dropped, where it is hardly better than chance one is added.
    """

    def __init__(self, adapt: bool, most: int) -> None:
        self.blocks = min(BLOCKS, most)
        self._adapt, self._most = adapt, most
        self._reliability = sum(_RELIABLE) / 2

    def see(self, values: np.ndarray) -> None:
        """values: float64 (candidates, blocks), of those that saw all their blocks."""
        candidates, blocks = values.shape
        if not self._adapt or candidates < 4 or blocks < 2:
            return
        found = variance(values).reliability(self.blocks)
        self._reliability += _MIX * (found - self._reliability)
        low, high = _RELIABLE
        if self._reliability < low:
            self.blocks = min(self.blocks + 1, self._most)
        elif self._reliability > high:
            self.blocks = max(self.blocks - 1, 2)
