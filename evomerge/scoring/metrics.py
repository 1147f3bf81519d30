"""Per-document metrics from a model's answers: lm-eval's own, then the smooth ones.

Where lm-eval has a metric of the same name as a smooth one, lm-eval's is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any

import numpy as np
from lm_eval.api.metrics import bits_per_byte, mean, weighted_perplexity

from evomerge.errors import CandidateError, one_line
from evomerge.scoring.lm_eval_parts import apply_filters, filter_names
from evomerge.scoring.reports import TaskScore
from evomerge.scoring.smooth_metrics import Response, is_weighted, smooth
from evomerge.scoring.tasks import BuiltTask, Document

# The aggregations of (log-likelihood, weight) pairs that mean something for one document alone. lm-eval's other
# aggregations of values that are no plain numbers do not.
_WEIGHTED = (weighted_perplexity, bits_per_byte)

# An answer to each kind of request, by which a task's metrics are tried out.
_MADE_UP: dict[str, Response] = {"generate_until": "", "loglikelihood_rolling": -1.0}

# Documents' numbers of which the mean is no median, minimum, product or the like.
_NUMBERS = (0.0, 1.0, 1.0, 0.3, 0.45)


class Metrics:
    """Turns the answers of one task into its score.

    Attributes:
        names: the metrics that have one number per document, lm-eval's first, then the smooth ones.
        corpus: lm-eval's metrics that have one number for all documents together, as f1 has.
        keys: lm-eval's name `metric,filter` of each of its metrics -> the name here.
        documents: the number of the task's documents.
    """

    def __init__(self, built: BuiltTask) -> None:
        self._built = built
        self._filters = filter_names(built.task)
        self._smooth = smooth(built)
        official = self._official_names()
        self._singles = tuple(name for name, single in official.items() if single)
        self.corpus = tuple(name for name, single in official.items() if not single)
        self.documents = len(built.documents)
        one = len(self._filters) == 1
        self.keys = {f"{name},{self._filters[0]}": name for name in official if one or "," not in name}
        self.keys |= {name: name for name in official if "," in name}
        self._smooth_names = tuple(name for name in self._smooth.names if name not in official)
        self.names = (*self._singles, *self._smooth_names)

    def first_key(self, metric: str) -> str | None:
        """lm-eval's name `metric,filter` of a metric of its own by the task's first filter; None if it lacks it."""
        key = f"{metric},{self._filters[0]}"
        return key if key in self.keys else None

    def own_name(self, metric: str) -> str | None:
        """The name here of a metric that is named plainly or as lm-eval names it; None if the task lacks it."""
        return metric if metric in (*self.names, *self.corpus) else self.keys.get(metric)

    def higher_is_better(self, metric: str) -> bool:
        """Whether a greater value of the metric is better, as the task says; True for smooth metrics."""
        return bool(self._built.task.higher_is_better().get(metric.split(",")[0], True))

    def is_mean(self, metric: str) -> bool:
        """Whether the task's value of a metric is the mean of its documents' numbers; found by made-up numbers."""
        if metric in self._smooth_names:
            return True
        try:
            return math.isclose(self._aggregate(metric, list(_NUMBERS)), mean(_NUMBERS), rel_tol=1e-9)
        except CandidateError:
            return False

    def _official_names(self) -> dict[str, bool]:
        """Each metric of lm-eval's -> whether it is one number per document; found by a made-up answer.

        For a task whose own code cannot read that answer, the metrics that it declares.
        """
        document = self._built.documents[0]
        made_up: list[Response] = [
            _MADE_UP.get(instance.request_type, (-1.0 - at, False))
            for at, instance in enumerate(document.instances)
        ]
        try:
            values = self._official([document], [made_up])
        except CandidateError:
            declared = [*self._built.task.aggregation()]
            more = [f"{name},{one}" for one in self._filters for name in declared if len(self._filters) > 1]
            return dict.fromkeys([*declared, *more], True)
        return {name: self._single(name, column[0]) is not None for name, column in values.items()}

    def score(self, documents: Sequence[int], responses: Sequence[Sequence[Response]]) -> TaskScore:
        """The score of the given documents.

        Args:
            documents: ids, ascending.
            responses: for each document the answers to its requests, then those to its references.

        Raises:
            CandidateError: a metric has no number for some document, or the task's own code fails on an answer.
        """
        chosen = [self._built.documents[at] for at in documents]
        own = [answers[: len(one.instances)] for one, answers in zip(chosen, responses, strict=True)]
        values = self._official(chosen, own)
        arrays = {}
        for name in self._singles:
            singles = [self._single(name, value) for value in values.get(name, ())]
            numbers = [single for single in singles if single is not None]
            if len(numbers) != len(chosen):
                raise CandidateError(f"{self._built.name}: the metric {name!r} has no number for some document")
            arrays[name] = np.array(numbers, dtype=np.float64)
        aggregates = {name: self._aggregate(name, column) for name, column in values.items()}
        rows = [self._smooth.values(at, answers) for at, answers in zip(documents, responses, strict=True)]
        for name in self._smooth_names:
            arrays[name] = np.array([row[name] for row in rows], dtype=np.float64)
            aggregates[name] = float(arrays[name].mean())
        return TaskScore(np.array(documents, dtype=np.int64), arrays, aggregates)

    def _single(self, name: str, value: Any) -> float | None:
        """A metric's number for one document; None if it means nothing for one document alone, as f1 does."""
        if isinstance(value, Number | np.bool_):
            return float(value)  # type: ignore[arg-type]
        weighted = self._aggregation(name) in _WEIGHTED and is_weighted(value)
        return self._aggregate(name, [value]) if weighted else None

    def _official(
        self, documents: Sequence[Document], responses: Sequence[Sequence[Response]]
    ) -> dict[str, list[Any]]:
        """Metric -> one value per document, by lm-eval's filters and `process_results`.

        With several filters a metric is named `metric,filter` as in lm-eval's tables, and the first filter's metric
        is also named plainly.
        """
        task = self._built.task
        instances = [instance for document in documents for instance in document.instances]
        answers = [answer for answered in responses for answer in answered]
        for instance, answer in zip(instances, answers, strict=True):
            instance.resps = [answer] * instance.repeats
            instance.filtered_resps = {}
        values: dict[str, list[Any]] = {}
        try:
            filters = apply_filters(task, instances)
            for document in documents:
                for at, key in enumerate(filters):
                    filtered = [instance.filtered_resps[key] for instance in document.instances]
                    for metric, value in task.process_results(document.record, filtered).items():
                        if len(filters) > 1:
                            values.setdefault(f"{metric},{key}", []).append(value)
                        if at == 0:
                            values.setdefault(metric, []).append(value)
        except Exception as error:
            raise CandidateError(f"{self._built.name}: its metrics fail: {one_line(error)}") from error
        return values

    def _aggregation(self, name: str) -> Callable[[list[Any]], Any]:
        function: Callable[[list[Any]], Any] = self._built.task.aggregation().get(name.split(",")[0], mean)
        return function

    def _aggregate(self, name: str, values: list[Any]) -> float:
        """lm-eval's aggregation of a metric: inf for a perplexity that exceeds the floats, NaN for one of no text.

        Raises:
            CandidateError: the task's own code fails on the values.
        """
        try:
            return float(self._aggregation(name)(values))
        except OverflowError:
            return math.inf
        except ZeroDivisionError:
            return math.nan
        except Exception as error:
            raise CandidateError(f"{self._built.name}: its metrics fail: {one_line(error)}") from error
