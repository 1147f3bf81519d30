"""The value of a candidate: the one home of weighted means over entries, and of paired differences of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

Scores = Mapping[str, np.ndarray]  # entry -> the score of each of its documents, float64 (documents,)


@dataclass(frozen=True)
class Difference:
    """The value of one candidate minus that of another, over the same documents.

    Attributes:
        mean: the weighted mean of the entries' mean differences.
        error: the standard error of `mean`, as if documents were drawn at random within each entry.
    """

    mean: float
    error: float


class Objective:
    """What a search climbs: the weighted mean of its entries' mean scores.

    An entry of which no document was chosen has no score and takes no part: then the weights of the others count
    alone.

    Args:
        sizes: entry of the fitness -> the number of its documents, in the order of the fitness.
        weights: entry -> its weight; all entries weigh alike by default.

    Attributes:
        shares: entry -> its share of the value; all shares add up to 1.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float] | None = None) -> None:
        self.sizes = dict(sizes)
        self._weights = {name: 1.0 if weights is None else weights[name] for name in sizes}
        self.shares = self.shares_among(self.sizes)

    @property
    def documents(self) -> int:
        """The number of documents of all entries together."""
        return sum(self.sizes.values())

    def shares_among(self, names: Collection[str]) -> dict[str, float]:
        """Entry -> its share of the value, where only these entries take part; the shares add up to 1."""
        weights = {name: weight for name, weight in self._weights.items() if name in names}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def of_means(self, means: Mapping[str, float]) -> float:
        """The value, from the mean score of each entry. Entries that are left out take no part."""
        named = {name: share for name, share in self.shares.items() if name in means}
        return float(sum(share * means[name] for name, share in named.items()) / sum(named.values()))

    def value(self, scores: Scores) -> float:
        """The value, from the scores of documents. Entries that are left out take no part."""
        return self.of_means({name: values.mean() for name, values in scores.items() if len(values)})

    def means(self, scores: Scores) -> tuple[float, ...]:
        """The mean score of each entry that has one, in the order of the fitness."""
        return tuple(float(scores[name].mean()) for name in self.sizes if name in scores)

    def in_one_row(self, scores: Scores) -> np.ndarray:
        """The scores of all documents, float64 (documents,): one entry behind the other, as in the fitness."""
        return np.concatenate([scores[name] for name in self.sizes if name in scores])

    def difference(self, ours: Scores, theirs: Scores) -> Difference:
        """The value of our candidate minus that of theirs, paired document by document.

        Args:
            ours: the scores of our candidate.
            theirs: the other candidate's scores of the same documents; it may have further entries.
        """
        apart = {name: values - theirs[name] for name, values in ours.items()}
        return Difference(self.value(apart), self._error(apart))

    def _error(self, differences: Scores) -> float:
        """The standard error of the weighted mean of the entries' mean differences."""
        named = {name: share for name, share in self.shares.items() if name in differences}
        total = sum(named.values())
        return math.sqrt(
            sum((share / total) ** 2 * differences[n].var() / len(differences[n]) for n, share in named.items())
        )
