"""Order statistics of very many magnitudes, which are counted and not sorted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Histogram:
    """Order statistics of very many numbers of at least 0, to 1/2048 of their size.

    Numbers are counted by the leading bits of their float32 form. So memory stays small, and neither the number of
    threads nor the order of the numbers changes a bit.

    Args:
        weights: the number of weights that come with each value; each has a sum by bucket beside the counts.
    """

    def __init__(self, weights: int = 0) -> None:
        self.counts = np.zeros(1 << 19, np.int64)
        self.sums = np.zeros((weights, 1 << 19))

    def add(self, values: np.ndarray, weights: Sequence[np.ndarray] = ()) -> None:
        """Counts float32 values, and adds the weights of each value to the sums of its bucket."""
        buckets = np.right_shift(values.view(np.int32), _SHIFT, dtype=np.int32).astype(np.intp)
        np.add.at(self.counts, buckets, 1)
        for total, weight in zip(self.sums, weights, strict=True):
            np.add.at(total, buckets, weight.astype(np.float64))

    def values(self, ranks: np.ndarray) -> np.ndarray:
        """The float32 values at these ranks; rank 0 is the smallest value."""
        used, place, share = self._find(ranks)
        low, high = self._edges(used[place])
        values: np.ndarray = (low + share * (high - low)).astype(np.float32)
        return values

    def below(self, ranks: np.ndarray, sums: np.ndarray | None = None) -> np.ndarray:
        """The sum of the values below each rank.

        sums: one of `self.sums`, to sum these weights and not the values.
        """
        used, place, share = self._find(ranks)
        if sums is None:
            low, high = self._edges(used)
            by_bucket = self.counts[used] * (low + high) / 2.0
        else:
            by_bucket = sums[used]
        upto = np.concatenate([[0.0], np.cumsum(by_bucket)])
        below: np.ndarray = upto[place] + share * by_bucket[place]
        return below

    def _find(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(used, place, share): the buckets in use, the place in `used` of each rank's bucket, and the share of
        that bucket's count that lies below the rank."""
        used = np.flatnonzero(self.counts)
        upto = np.concatenate([[0], np.cumsum(self.counts[used])])
        place = np.minimum(np.searchsorted(upto, ranks, side="right") - 1, len(used) - 1)
        return used, place, (ranks - upto[place]) / self.counts[used[place]]

    def _edges(self, bucket: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest number that a bucket counts, float64."""
        bits = bucket.astype(np.int32) << _SHIFT
        last = np.int32(0x7F7FFFFF)  # the largest finite number
        low, high = np.minimum(bits, last), np.minimum(bits + np.int32((1 << _SHIFT) - 1), last)
        return low.view(np.float32).astype(np.float64), high.view(np.float32).astype(np.float64)


_SHIFT = 12  # bits of a float32 that are not told apart; of the other 19 the sign is not needed
