"""Stratified means: an entry's tasks are its strata.

Where a block has too few documents for all tasks of an entry, small tasks are drawn from together: systematically,
with probabilities proportional to their shares (Madow 1949; Cochran 1977, ch. 8 and 9A). The mean over such a
stratum is unbiased, although a block lacks some of its tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_ROUNDING = 1e-9  # by which a sum of shares may miss a whole number


def strata(shares: Sequence[float], documents: int) -> list[list[int]]:
    """The tasks that are drawn from together, of which a block has a document of each stratum at least.

    A task whose part of the documents is one or more is a stratum by itself. Smaller ones are joined with their
    neighbours.

    Args:
        shares: each task's share of the entry; they add up to 1.
        documents: how many a block has of the entry, at least 1.

    Returns:
        The numbers of the tasks of each stratum, ascending.
    """
    wanted = [documents * share for share in shares]
    large = [[at] for at, count in enumerate(wanted) if count >= 1 - _ROUNDING]
    small = [at for at, count in enumerate(wanted) if count < 1 - _ROUNDING]
    total = sum(wanted[at] for at in small)
    joined: list[list[int]] = [[] for _ in range(int(total + _ROUNDING))]
    if not joined and small:  # too small for a document of their own
        joined = [large.pop(min(range(len(large)), key=lambda one: wanted[large[one][0]]))]
    before = 0.0
    for at in small:
        middle = (before + wanted[at] / 2) / total
        joined[int(middle * len(joined))].append(at)
        before += wanted[at]
    return sorted(sorted(one) for one in large + joined)


def apportioned(shares: Sequence[float], documents: int) -> list[int]:
    """So many documents divided among strata by their shares, which add up to 1: by largest remainders.

    Each has one at least, even if that makes them more.
    """
    exact = [documents * share for share in shares]
    counts = [max(int(count + _ROUNDING), 1) for count in exact]
    by_remainder = sorted(range(len(exact)), key=lambda at: counts[at] - exact[at])
    for at in by_remainder[: max(documents - sum(counts), 0)]:
        counts[at] += 1
    return counts


def visits(shares: Sequence[float], documents: int, starts: np.ndarray) -> np.ndarray:
    """How many documents each task of a stratum gives: a systematic sample with unequal probabilities.

    The tasks lie behind each other on [0, 1), each as long as its share, and are hit at (start + i) / documents. A
    task is hit `documents · share` times on the average over the starts, and each time by at most one more or less.

    Args:
        shares: each task's share of the stratum; they add up to 1.
        starts: float64 (blocks,), each in [0, 1).

    Returns:
        int64 (blocks, tasks). Each row adds up to `documents`.
    """
    points = (starts[:, None] + np.arange(documents)) / documents
    task = np.minimum(np.searchsorted(np.cumsum(shares), points, side="right"), len(shares) - 1)
    return np.stack([(task == at).sum(axis=1) for at in range(len(shares))], axis=1)


def starts(first: float, blocks: int) -> np.ndarray:
    """The starts of the blocks before one, and its own: float64 (blocks,), each uniform in [0, 1) if `first` is.

    The golden ratio spreads any run of them evenly (Weyl's sequence).
    """
    return np.asarray((first + _GOLDEN * np.arange(blocks)) % 1.0)


def parts(scores: Sequence[np.ndarray], shares: Sequence[float]) -> list[np.ndarray]:
    """What each document adds to the weighted mean of the means of some strata, float64 (documents,) by stratum.

    An error can be estimated in strata of two documents and more. So those of one document are joined, a lone one
    with the smallest of the others, which overstates the error (collapsed strata: Cochran 1977, 5A.12).
    """
    every = [own * (share / own.size) for own, share in zip(scores, shares, strict=True)]
    single, several = [one for one in every if one.size == 1], [one for one in every if one.size > 1]
    if len(single) == 1 and several:
        single.append(several.pop(min(range(len(several)), key=lambda at: several[at].size)))
    return [*several, np.concatenate(single)] if single else several


def standard_error(added: Sequence[np.ndarray]) -> float:
    """The standard error of the sum of `parts`; 0 for a single document, of which nothing is known."""
    return math.sqrt(sum(own.size * own.var(ddof=1) for own in added if own.size > 1))
