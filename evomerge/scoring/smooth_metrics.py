"""Smooth metrics, for a search to climb: how likely the model finds what is right, document by document.

A multiple-choice document with summed log-likelihoods `l` of its choices and gold choices `G` has:

    probability    sum of softmax(l) over G
    loglikelihood  log of the sum of exp(l) over G
    margin         max of l over G, minus max of l over the others

A document with one log-likelihood request has:

    loglikelihood  log-likelihood of its answer

A document that is read as a whole (loglikelihood_rolling) has:

    loglikelihood           log-likelihood of its text, in nats
    loglikelihood_per_word  the same divided by its number of words, as the task counts them
    loglikelihood_per_byte  the same divided by its number of bytes, as the task counts them

A document that is answered in free text, and whose reference answers are forwarded too, has:

    loglikelihood  log of the sum of the reference answers' probabilities after the prompt

A greater value is better for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
from lm_eval.api.task import ConfigurableTask, Task

from evomerge.errors import ConfigError, one_line
from evomerge.scoring.tasks import BuiltTask

CHOICE_METRICS = ("probability", "loglikelihood", "margin")
"""The smooth metrics of multiple choice."""

ROLLING_METRICS = ("loglikelihood", "loglikelihood_per_word", "loglikelihood_per_byte")
"""The smooth metrics of documents that are read as a whole."""

Response = tuple[float, bool] | str | float
"""What lm-eval's model answers to one request: (log-probability, whether greedy), a generated text, or the
log-likelihood of a whole text."""


@dataclass(frozen=True)
class Smooth:
    """The smooth metrics of a task.

    Attributes:
        names: (), where smooth metrics make no sense.
        values: (document id, answers to its requests, then to those of its references) -> metric -> number.
    """

    names: tuple[str, ...]
    values: Callable[[int, Sequence[Any]], dict[str, float]]


def smooth(built: BuiltTask) -> Smooth:
    """The smooth metrics that fit a task.

    Raises:
        ConfigError: the task's own code cannot tell how long its documents are.
    """
    right = golds(built)
    if right is not None:
        return _of_choices(built, right)
    kinds = {tuple(instance.request_type for instance in document.instances) for document in built.documents}
    if kinds == {("loglikelihood",)}:
        return Smooth(("loglikelihood",), lambda _, answers: {"loglikelihood": answers[0][0]})
    if kinds == {("loglikelihood_rolling",)}:
        return _of_texts(built)
    if all(document.references for document in built.documents):
        return _of_references(built)
    return Smooth((), lambda _, __: {})


def golds(built: BuiltTask) -> tuple[tuple[int, ...], ...] | None:
    """The gold choices of each document of a multiple-choice task, as lm-eval reads them: indices of its choices.

    None where smooth metrics make no sense: another output type, or a document whose label is none of its choices.
    """
    task = built.task
    if task.OUTPUT_TYPE != "multiple_choice" or not isinstance(task, ConfigurableTask):
        return None
    right = []
    for document in built.documents:
        choices = task.doc_to_choice(document.record)
        label = task.doc_to_text(document.record) if task.multiple_input else task.doc_to_target(document.record)
        gold = tuple(_index(one, choices) for one in (label if isinstance(label, list) else [label]))
        if not gold or not all(0 <= index < len(choices) for index in gold):
            return None
        right.append(gold)
    return tuple(right)


def _index(label: Any, choices: Sequence[str]) -> int:
    """The index of the choice that a label names; -1 if it names none."""
    if isinstance(label, str):
        return choices.index(label) if label in choices else -1
    return label if isinstance(label, int) else -1


def _of_choices(built: BuiltTask, gold: Sequence[Sequence[int]]) -> Smooth:
    def values(at: int, answers: Sequence[Any]) -> dict[str, float]:
        # acc_mutual_info asks for each choice once more, without its context.
        count = len(built.task.doc_to_choice(built.documents[at].record))
        return choice_metrics(np.array([answer[0] for answer in answers[:count]]), gold[at])

    return Smooth(CHOICE_METRICS, values)


def choice_metrics(logprobs: np.ndarray, gold: Sequence[int]) -> dict[str, float]:
    """The smooth metrics of one multiple-choice document.

    Args:
        logprobs: (choices,) float64, finite: the summed log-probability of each choice.
        gold: indices of the right choices.
    """
    is_gold = np.zeros(len(logprobs), dtype=bool)
    is_gold[list(gold)] = True
    right = float(np.logaddexp.reduce(logprobs[is_gold]))
    others = logprobs[~is_gold]
    return {
        "probability": float(np.exp(right - np.logaddexp.reduce(logprobs))),
        "loglikelihood": right,
        "margin": float(logprobs[is_gold].max() - others.max()) if len(others) else 0.0,
    }


def _of_texts(built: BuiltTask) -> Smooth:
    sizes = [_sizes(built, document.record) for document in built.documents]

    def values(at: int, answers: Sequence[Any]) -> dict[str, float]:
        words, size = sizes[at]
        numbers = (answers[0], answers[0] / words, answers[0] / size)
        return dict(zip(ROLLING_METRICS, numbers, strict=True))

    return Smooth(ROLLING_METRICS, values)


def _sizes(built: BuiltTask, record: Any) -> tuple[float, float]:
    """The numbers of words and bytes of a text, at least 1: those by which the task's perplexities divide, if any.

    They may differ from those of the text that is forwarded: wikitext counts before it is detokenized.
    """
    task: Task = built.task
    try:
        made_up = task.process_results(record, [-1.0])
        text = task.doc_to_target(record)
        words = _weight(made_up, "word_perplexity") or task.count_words(text)
        size = _weight(made_up, "byte_perplexity", "bits_per_byte") or task.count_bytes(text)
    except Exception as error:
        raise ConfigError(built.name, [f"its words and bytes cannot be counted: {one_line(error)}"]) from error
    return max(words, 1), max(size, 1)


def _weight(metrics: dict[str, Any], *names: str) -> float | None:
    """The weight in the first of these metrics that is a pair (log-likelihood, weight)."""
    pairs = (metrics[name] for name in names if name in metrics)
    return next((float(pair[1]) for pair in pairs if is_weighted(pair)), None)


def is_weighted(value: Any) -> bool:
    """Whether a metric's value for a document is a pair of numbers, as (log-likelihood, words)."""
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(one, Number) for one in value)


def _of_references(built: BuiltTask) -> Smooth:
    def values(at: int, answers: Sequence[Any]) -> dict[str, float]:
        logprobs = [answer[0] for answer in answers[len(built.documents[at].instances) :]]
        return {"loglikelihood": float(np.logaddexp.reduce(logprobs))}

    return Smooth(("loglikelihood",), values)
