"""Paired tests on held-out documents: is a difference more than noise?

Differences are paired by document: the test is a sign-flip permutation test, the interval a bootstrap, both
stratified by task (Noreen 1989; Efron and Tibshirani 1993, ch. 13 and 15). A resample is spread by √(n/(n-1)) in a
task of n documents, so that its variance is unbiased (Rao and Wu 1988). For tasks of one document see
`strata.parts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evomerge.searching.strata import parts

RESAMPLES = 10_000  # of the bootstrap, and of the permutation test
LEVEL = 0.05  # a difference with a greater p is within noise

_AT_ONCE = 500  # the number of resamples that are held in memory


@dataclass(frozen=True)
class Paired:
    """One model's hold-out score minus another's, over the same documents.

    Attributes:
        gain: the difference of the scores.
        low, high: the ends of its 95 % bootstrap interval.
        p: the two-sided p-value of the sign-flip permutation test.
    """

    gain: float
    low: float
    high: float
    p: float

    @property
    def verdict(self) -> str:
        """The gain in words: better, worse or within noise."""
        if self.p >= LEVEL:
            return "within noise"
        return "better" if self.gain > 0 else "worse"


def p_text(p: float) -> str:
    """A p-value as people read it, such as `= 0.023` or `< 0.001`."""
    return f"< {1e-3:g}" if p < 1e-3 else f"= {p:.3f}"


def paired(
    differences: Sequence[np.ndarray],
    shares: Sequence[float] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """Tests the weighted mean over tasks of their mean paired differences.

    Args:
        differences: for each task the difference on each of its documents, float64 (documents,).
        shares: the share of each task in the mean; they add up to 1 and are equal by default.
        resamples, seed: how many resamples are drawn for each of the two methods, and from which seed.

    Returns:
        The gain with its bootstrap interval and permutation p-value. Equal arguments give equal numbers.
    """
    shares = [1.0 / len(differences)] * len(differences) if shares is None else shares
    added = parts(differences, shares)
    gain = float(sum(own.sum() for own in added))

    def spread(*samples: np.ndarray, axis: int) -> np.ndarray:
        apart = [
            math.sqrt(own.size / (own.size - 1)) * (sample.sum(axis=axis) - own.sum())
            for own, sample in zip(strata, samples, strict=True)
        ]
        return np.asarray(gain + np.sum(apart, axis=0))

    # scipy wants at least two observations; a single one that is repeated has an interval without width.
    strata = [np.repeat(own / 2, 2) if own.size == 1 else own for own in added]
    interval = stats.bootstrap(
        strata,
        spread,
        n_resamples=resamples,
        batch=_AT_ONCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    p = _sign_flips(np.concatenate(added), gain, resamples, seed)
    return Paired(gain, float(interval.low), float(interval.high), p)


def _sign_flips(added: np.ndarray, gain: float, resamples: int, seed: int) -> float:
    """The two-sided p-value of a gain. What each document adds to it, float64 (documents,), may have either sign.

    scipy's `permutation_test` does the same with one sample, and takes eight times as long.
    """
    random = np.random.default_rng(seed)
    as_large = 0
    for start in range(0, resamples, _AT_ONCE):
        signs = random.integers(2, size=(min(_AT_ONCE, resamples - start), added.size), dtype=np.int8)
        flipped = (2.0 * signs - 1.0) @ added
        as_large += int((np.abs(flipped) >= abs(gain) - 1e-12).sum())
    return (as_large + 1) / (resamples + 1)
