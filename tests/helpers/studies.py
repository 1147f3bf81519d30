"""Studies begun and run without a person who watches, and what of their trials must be equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evomerge.studies import life
from evomerge.studies.experiment import load_experiment
from evomerge.studies.plan import Plan, make_plan
from evomerge.studies.trials import Trial


class Silent:
    """An observer that stops the search after so many trials, as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.left = stop_after
        self.seen: list[Trial] = []

    def generation(self, number: int, size: int) -> None:
        pass

    def trial(self, trial: Trial) -> None:
        self.seen.append(trial)
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def begin(path: Path) -> Plan:
    experiment = load_experiment(path)
    plan = make_plan(experiment)
    life.create(plan.experiment)
    return plan


def what_counts(trials: list[Trial]) -> list[Any]:
    return [
        (t.number, t.generation, t.slot, t.genome, t.recipe, t.value, t.tasks, t.weights_sha256) for t in trials
    ]


def all_that_counts(trials: list[Trial]) -> list[Any]:
    more = [
        (
            t.role,
            t.blocks,
            t.all_documents,
            t.incumbent,
            t.log_length_when_asked,
            t.documents,
            t.gradient,
            t.climbed,
        )
        for t in trials
    ]
    return list(zip(what_counts(trials), more, strict=True))
