"""What a scorer is asked for and what it answers: task specs, scores and reports.

Plain values that hold numbers and numpy arrays alone, so that whoever reads results imports neither torch nor
lm-eval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TaskSpec:
    """One task of a fitness file.

    Attributes:
        task: the name of an lm-eval task, group or tag; a group or tag stands for all its tasks.
        num_fewshot: examples in the prompt; None leaves the task's own number (a task that fixes 0 keeps it).
        metric, climbs: what is reported and what is climbed, see `fitness.Entry`; `metric` None asks for answers
            alone, `climbs` None is the metric. A group's tasks that lack the metric are left out where lm-eval
            leaves them out.
        limit: only the first `limit` documents are scored, as lm-eval counts them; None scores all.
        reference: whether the reference answers of generate_until tasks are forwarded too, each after its prompt,
            for the smooth metric `loglikelihood`. Tasks of other kinds ignore this.
    """

    task: str
    metric: str | None = None
    climbs: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    reference: bool = False


@dataclass(frozen=True)
class Member:
    """A task of an entry of the fitness.

    Attributes:
        share: its share of the entry's score; those of all members add up to 1.
        metric, climbs: the task's own names of the metrics that are reported and climbed.
    """

    share: float
    metric: str
    climbs: str


@dataclass(frozen=True)
class TaskScore:
    """The results of one task, document by document.

    Attributes:
        documents: (n,) int64, document ids, ascending.
        metrics: metric -> (n,) float64: the numbers that lm-eval's `process_results` gives, and the smooth metrics.
            A metric that weighs its documents (a perplexity) has its aggregation over each document alone, and NaN
            for a document without weight.
        aggregates: metric -> lm-eval's own aggregation over these documents (the mean for smooth metrics).
    """

    documents: np.ndarray
    metrics: dict[str, np.ndarray]
    aggregates: dict[str, float]


@dataclass(frozen=True)
class Report:
    """The result of one call of `Scorer.score`.

    Attributes:
        tasks: task -> its score.
        tokens: how many tokens were forwarded, prompts and generated ones, padding left out.
        padding: how many padding tokens were forwarded besides.
        truncated: task -> how many generated answers reached their greatest length before a stop string or the end
            of text.
        cut_prompts: task -> how many documents have a prompt whose left end was cut off to fit the model's maximum
            length.
    """

    tasks: dict[str, TaskScore]
    tokens: int
    padding: int
    truncated: dict[str, int]
    cut_prompts: dict[str, int]
