"""How well a mini-batch ranks its candidates, and how many documents that asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCKS = 4  # that a batch consists of


MOST_BLOCKS = 16  # of a generation, before its effort

_SURE = 1.64  # standard errors: a candidate this far below the better half is out


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


def survivors(values: np.ndarray) -> np.ndarray:
    """Which candidates may still reach the better half: bool (candidates,).

    values: float64 (candidates, blocks so far). A candidate is out where the last of the better half is above it by
    more than chance explains. With fewer than two blocks or four candidates nothing is known of chance.
    """
    candidates, blocks = values.shape
    if blocks < 2 or candidates < 4:
        return np.ones(candidates, dtype=bool)
    means = values.mean(axis=1)
    cut = np.sort(means)[::-1][(candidates + 1) // 2 - 1]
    error = np.sqrt(2 * variance(values).noise / blocks)
    kept: np.ndarray = cut - means <= _SURE * error
    return kept


def level(rows: Sequence[Sequence[float]]) -> list[float]:
    """Values that compare, of candidates that saw the first blocks only and of those that saw all.

    rows: each candidate's values on its blocks. A candidate that stopped early is put as far below the others as it
    was on the blocks that they share, and never above the last of them.
    """
    longest = max(map(len, rows))
    whole = np.array([row for row in rows if len(row) == longest])
    found = []
    for row in rows:
        if len(row) == longest:
            found.append(float(np.mean(row)))
        else:
            behind = float(np.mean(row) - whole[:, : len(row)].mean())
            found.append(min(behind + float(whole.mean()), float(whole.mean(axis=1).min())))
    return found


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
