"""The value of a candidate: the one home of weighted means over tasks and entries, and of their differences."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.searching.strata import parts, standard_error

Scores = Mapping[str, np.ndarray]  # task -> the score of each of its documents, float64 (documents,)


@dataclass(frozen=True)
class Difference:
    """The value of one candidate minus that of another, over the same documents.

    Attributes:
        mean: the weighted mean of the tasks' mean differences.
        error: the standard error of `mean`, as if documents were drawn at random within each task.
    """

    mean: float
    error: float


class Objective:
    """What a search climbs: the weighted mean of its entries' scores.

    The score of an entry is the weighted mean of its tasks' mean scores; most entries are a single task. A task of
    which no document was chosen takes no part, and then the others' weights count alone. So it is with entries.

    Args:
        sizes: task -> the number of its documents, in the order of the fitness.
        weights: entry -> its weight; all entries weigh alike by default.
        groups: entry -> task -> the task's share of the entry; by default each task is an entry.

    Attributes:
        groups: as given.
        shares: task -> its share of the value; all shares add up to 1.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        weights: Mapping[str, float] | None = None,
        groups: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.sizes = dict(sizes)
        self.groups = {name: {name: 1.0} for name in sizes} if groups is None else dict(groups)
        self._weights = {name: 1.0 if weights is None else weights[name] for name in self.groups}
        self.shares = self.shares_among(self.sizes)

    @property
    def documents(self) -> int:
        """The number of documents of all tasks together."""
        return sum(self.sizes.values())

    def shares_among(self, tasks: Collection[str]) -> dict[str, float]:
        """Task -> its share of the value, where only these tasks take part; the shares add up to 1."""
        present = {entry: {t: s for t, s in own.items() if t in tasks} for entry, own in self.groups.items()}
        total = sum(self._weights[entry] for entry, own in present.items() if own)
        return {
            task: self._weights[entry] / total * (share / sum(own.values()))
            for entry, own in present.items()
            for task, share in own.items()
        }

    def of_entries(self, scores: Mapping[str, float]) -> float:
        """The value, from the score of each entry. Entries that are left out take no part."""
        total = sum(self._weights[entry] for entry in self.groups if entry in scores)
        return float(sum(self._weights[entry] / total * scores[entry] for entry in self.groups if entry in scores))

    def entries(self, means: Mapping[str, float], shares: Mapping[str, float] | None = None) -> dict[str, float]:
        """The score of each entry that has one, in the order of the fitness.

        Args:
            means: the mean score of each task that takes part.
            shares: task -> its share of the value, where it is not that of `shares_among`.
        """
        shares = self.shares_among(means) if shares is None else shares
        scores = {}
        for entry, own in self.groups.items():
            named = {task: shares[task] for task in own if task in means}
            if named:
                scores[entry] = sum(share * means[t] for t, share in named.items()) / sum(named.values())
        return scores

    def value(self, scores: Scores, shares: Mapping[str, float] | None = None) -> float:
        """The value, from the scores of documents. Tasks that are left out take no part.

        Args:
            shares: as for `entries`.
        """
        means = _means(scores)
        shares = self.shares_among(means) if shares is None else shares
        return float(sum(shares[task] * mean for task, mean in means.items()))

    def means(self, scores: Scores, shares: Mapping[str, float] | None = None) -> tuple[float, ...]:
        """The score of each entry that has one, in the order of the fitness, from the scores of documents."""
        return tuple(self.entries(_means(scores), shares).values())

    def in_one_row(self, scores: Scores) -> np.ndarray:
        """The scores of all documents, float64 (documents,): one task behind the other, as in the fitness."""
        return np.concatenate([scores[name] for name in self.sizes if name in scores])

    def difference(self, ours: Scores, theirs: Scores) -> Difference:
        """The value of our candidate minus that of theirs, paired document by document.

        Args:
            ours: the scores of our candidate.
            theirs: the other candidate's scores of the same documents; it may have further tasks.
        """
        apart = {name: values - theirs[name] for name, values in ours.items() if len(values)}
        shares = self.shares_among(apart)
        added = parts(list(apart.values()), [shares[name] for name in apart])
        return Difference(self.value(apart, shares), standard_error(added))


def _means(scores: Scores) -> dict[str, float]:
    """The mean score of each task that has documents."""
    return {name: float(values.mean()) for name, values in scores.items() if len(values)}
