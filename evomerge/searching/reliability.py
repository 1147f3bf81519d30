"""How well a mini-batch ranks its candidates, and how many blocks the next one should therefore have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCKS = 4  # the number of blocks that a batch begins with
MOST_BLOCKS = 16  # the greatest number of blocks of a generation of the usual effort
_RELIABLE = (0.35, 0.75)  # below this range of reliability a generation takes more blocks, above it fewer
_MIX = 0.3  # weight of a generation's reliability in the running mean


@dataclass(frozen=True)
class Variance:
    """Two-way analysis of variance, candidates by blocks without repetition (Fisher 1925).

    Attributes:
        between: the variance of the candidates' true values.
        noise: the variance of one candidate's value on one block, without the block's own difficulty.
    """

    between: float
    noise: float

    def reliability(self, blocks: int) -> float:
        """The share, in [0, 1], that true differences have in the variance of the candidates' means over so many
        blocks."""
        total = self.between + self.noise / blocks
        return self.between / total if total > 0 else 0.0


def variance(values: np.ndarray) -> Variance:
    """The analysis of the candidates' values on each block.

    Args:
        values: float64 (candidates, blocks), at least two of either.
    """
    candidates, blocks = values.shape
    rows, columns = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    residual = values - rows - columns + values.mean()
    noise = float((residual**2).sum() / ((candidates - 1) * (blocks - 1)))
    between = float(blocks * rows.var(ddof=1))
    return Variance(max(between - noise, 0.0) / blocks, noise)


class Pace:
    """Decides how many blocks the next generation gets.

    Fewer documents rank worse, but leave more generations for the same budget. So where the ranking of recent
    generations is reliable a block is dropped, and where it is hardly better than chance a block is added.

    Args:
        adapt: whether the number of blocks changes at all.
        most: the greatest number of blocks.

    Attributes:
        blocks: the number of blocks that the next generation gets.
    """

    def __init__(self, adapt: bool, most: int) -> None:
        self.blocks = min(BLOCKS, most)
        self._adapt, self._most = adapt, most
        self._reliability = sum(_RELIABLE) / 2

    def see(self, values: np.ndarray) -> None:
        """Takes in a generation. With fewer than four candidates, or with one block, it says too little.

        Args:
            values: float64 (candidates, blocks), of the candidates that saw all their blocks.
        """
        candidates, blocks = values.shape
        if not self._adapt or candidates < 4 or blocks < 2:
            return
        reliability = variance(values).reliability(self.blocks)
        self._reliability += _MIX * (reliability - self._reliability)
        low, high = _RELIABLE
        if self._reliability < low:
            self.blocks = min(self.blocks + 1, self._most)
        elif self._reliability > high:
            self.blocks = max(self.blocks - 1, 2)
