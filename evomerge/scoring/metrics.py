"""From answers to per-document metrics: lm-eval's own, and smooth ones for a search to climb.

Smooth metrics of a multiple-choice document with summed log-likelihoods `l` of its choices and gold choices `G`:

    probability    sum of softmax(l) over G
    loglikelihood  log of the sum of exp(l) over G
    margin         max of l over G, minus max of l over the others

and of a document whose output type is loglikelihood: `loglikelihood`, that of its one answer. Where lm-eval has
a metric of the same name, lm-eval's stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from evomerge.errors import CandidateError
from evomerge.scoring.tasks import BuiltTask, Document, TaskScore, one_line

CHOICE_METRICS = ("probability", "loglikelihood", "margin")
Response = tuple[float, bool] | str


def golds(built: BuiltTask) -> tuple[tuple[int, ...], ...] | None:
    """The gold choices of each document of a multiple-choice task, as lm-eval reads them.

    None where smooth metrics make no sense: another output type, or a document whose label is no choice of it.
    """
    task = built.task
    if task.OUTPUT_TYPE != "multiple_choice" or not isinstance(task, ConfigurableTask):
        return None
    found = []
    for document in built.documents:
        choices = task.doc_to_choice(document.record)
        label = task.doc_to_text(document.record) if task.multiple_input else task.doc_to_target(document.record)
        gold = tuple(_index(one, choices) for one in (label if isinstance(label, list) else [label]))
        if not gold or not all(0 <= index < len(choices) for index in gold):
            return None
        found.append(gold)
    return tuple(found)


def _index(label: Any, choices: Sequence[str]) -> int:
    if isinstance(label, str):
        return choices.index(label) if label in choices else -1
    return label if isinstance(label, int) else -1


def choice_metrics(logprobs: np.ndarray, gold: Sequence[int]) -> dict[str, float]:
    """The smooth metrics of one document. logprobs: (choices,) float64, finite. gold: indices into it."""
    is_gold = np.zeros(len(logprobs), dtype=bool)
    is_gold[list(gold)] = True
    right = float(np.logaddexp.reduce(logprobs[is_gold]))
    others = logprobs[~is_gold]
    return {
        "probability": float(np.exp(right - np.logaddexp.reduce(logprobs))),
        "loglikelihood": right,
        "margin": float(logprobs[is_gold].max() - others.max()) if len(others) else 0.0,
    }


class Metrics:
    """Turns the answers of one task into its score.

    names: metrics that have one number per document, smooth ones included.
    """

    def __init__(self, built: BuiltTask) -> None:
        self._built = built
        self._golds = golds(built)
        self._one_answer = built.task.OUTPUT_TYPE == "loglikelihood" and all(
            len(document.instances) == 1 for document in built.documents
        )
        official = self._official_names()
        self._smooth = tuple(name for name in self._smooth_names() if name not in official)
        self.names = (*(name for name, single in official.items() if single), *self._smooth)

    def _smooth_names(self) -> tuple[str, ...]:
        if self._golds is not None:
            return CHOICE_METRICS
        return ("loglikelihood",) if self._one_answer else ()

    def _official_names(self) -> dict[str, bool]:
        """lm-eval's metrics, and whether each is one number per document: found by a made-up answer.

        A task whose own code cannot read that answer has the metrics that it declares.
        """
        document = self._built.documents[0]
        made_up: list[Response] = [
            "" if instance.request_type == "generate_until" else (-1.0 - at, False)
            for at, instance in enumerate(document.instances)
        ]
        try:
            values = self._official([document], [made_up])
        except CandidateError:
            return dict.fromkeys(self._built.task.aggregation(), True)
        return {name: isinstance(found[0], Number) for name, found in values.items()}

    def score(self, documents: Sequence[int], responses: Sequence[Sequence[Response]]) -> TaskScore:
        """The score of the given documents.

        documents: ids, ascending. responses: for each, the answer to each of its requests.

        Raises:
            CandidateError: a metric has no number for some document, or the task's own code fails on an answer.
        """
        chosen = [self._built.documents[at] for at in documents]
        values = self._official(chosen, responses)
        arrays = {}
        for name in self.names:
            if name in self._smooth:
                continue
            numbers = [value for value in values.get(name, ()) if isinstance(value, Number)]
            if len(numbers) != len(chosen):
                raise CandidateError(f"{self._built.name}: the metric {name!r} has no number for some document")
            arrays[name] = np.array(numbers, dtype=np.float64)
        aggregates = {name: self._aggregate(name, found) for name, found in values.items()}
        for name, column in self._smooth_values(documents, responses).items():
            arrays[name] = column
            aggregates[name] = float(column.mean())
        return TaskScore(np.array(documents, dtype=np.int64), arrays, aggregates)

    def _smooth_values(self, documents: Sequence[int], responses: Sequence[Sequence[Any]]) -> dict[str, np.ndarray]:
        if self._golds is None:
            return {name: np.array([answer[0][0] for answer in responses]) for name in self._smooth}
        rows = []
        for at, answers in zip(documents, responses, strict=True):
            count = len(self._built.task.doc_to_choice(self._built.documents[at].record))
            logprobs = np.array([answer[0] for answer in answers[:count]])
            rows.append(choice_metrics(logprobs, self._golds[at]))
        return {name: np.array([row[name] for row in rows]) for name in self._smooth}

    def _official(
        self, documents: Sequence[Document], responses: Sequence[Sequence[Response]]
    ) -> dict[str, list[Any]]:
        """lm-eval's filters and `process_results`: metric -> one value per document.

        With several filters a metric is named `metric,filter` as in lm-eval's tables, and the first filter's is
        also named plainly.
        """
        task = self._built.task
        instances = [instance for document in documents for instance in document.instances]
        answers = [answer for answered in responses for answer in answered]
        for instance, answer in zip(instances, answers, strict=True):
            instance.resps = [answer] * instance.repeats
            instance.filtered_resps = {}
        values: dict[str, list[Any]] = {}
        try:
            for ensemble in task._filters:
                ensemble.apply(instances)
            filters = list(instances[0].filtered_resps)
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

    def _aggregate(self, name: str, values: list[Any]) -> float:
        functions: Mapping[str, Any] = self._built.task.aggregation()
        return float(functions.get(name.split(",")[0], mean)(values))
