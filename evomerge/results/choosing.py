"""Which trial of a study is exported or certified: the best, a knee, a number, or weights of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evomerge.errors import ConfigError, suggest
from evomerge.results.fronts import comparable_trials, front, knee
from evomerge.studies.trials import Trial, best_trial

PICKS = ("best", "knee")
_WHERE = "--pick"


def by_weights(trials: Sequence[Trial], weights: Mapping[str, float]) -> Trial:
    """The trial with the highest weighted mean of the tasks' climbed metrics.

    Among equals it is the trial of the highest fitness; then the earliest.

    Args:
        weights: task -> its weight, finite and at least 0. Tasks that are left out do not count.

    Raises:
        ConfigError: no trial is finished, a task is unknown, or a weight is out of range; with all faults.
    """
    comparable = comparable_trials(trials)
    if not comparable:
        raise ConfigError(_WHERE, ["the study has no finished trial yet"])
    tasks = comparable[0].climbed
    faults = [f"unknown task {task!r}.{suggest(task, tasks)}" for task in weights if task not in tasks]
    faults += [
        f"the weight of {task} must be finite and at least 0, but is {weight:g}"
        for task, weight in weights.items()
        if not 0.0 <= weight < math.inf
    ]
    largest = max(weights.values(), default=0.0)
    if not faults and largest == 0.0:
        faults = ["give at least one task a weight above 0"]
    if faults:
        raise ConfigError(_WHERE, faults)

    def mean(trial: Trial) -> float:
        return math.fsum(weight / largest * trial.climbed[task] for task, weight in weights.items())

    return max(comparable, key=lambda trial: (mean(trial), trial.value, -trial.number))


def pick(trials: Sequence[Trial], text: str) -> Trial:
    """The trial that a text names: `best`, `knee`, a trial's number, or weights such as `maths=2,code=1`.

    Raises:
        ConfigError: the text names no trial, or no trial is finished.
    """
    if text.isdecimal():
        if int(text) >= len(trials):
            raise ConfigError(_WHERE, [f"is {text}, but the study has trials 0 to {len(trials) - 1}"])
        return trials[int(text)]
    if "=" in text:
        return by_weights(trials, _weights(text))
    if text not in PICKS:
        what = "give one of these, a trial's number, or weights like maths=2,code=1"
        raise ConfigError(_WHERE, [f"is {text!r}; {what}.{suggest(text, PICKS)}"])
    winner = best_trial(trials)
    if winner is None:
        raise ConfigError(_WHERE, ["the study has no finished trial yet"])
    return winner if text == "best" else knee(front(trials))


def _weights(text: str) -> dict[str, float]:
    """Task -> weight, from a text such as `maths=2,code=1`.

    Raises:
        ConfigError: the text is none such.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        task, sign, number = (piece.strip() for piece in part.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            sign = ""
        if not sign or not task:
            raise ConfigError(_WHERE, [f"{part.strip()!r} is no weight; write TASK=NUMBER, as in maths=2,code=1"])
        if task in weights:
            raise ConfigError(_WHERE, [f"names {task} twice"])
        weights[task] = weight
    return weights
