from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evomerge.results import certificate, tables
from evomerge.scoring.fitness import Entry
from evomerge.scoring.reports import Report, TaskScore
from evomerge.searching.objective import Objective
from evomerge.searching.spaces import genes
from evomerge.studies import experiment
from evomerge.studies.candidates.score import Score, measure, objective_of
from evomerge.studies.plan import make_plan
from evomerge.studies.workers.jobs import Job, Outcome
from tests.helpers.objectives import lone, members
from tests.helpers.reports import report


def test_a_group_is_tested_by_its_shares_and_each_of_its_tasks_is_a_stratum() -> None:
    """Of a group of a small and a large task whose plain mean counts, with entries of unequal weight."""
    entries = [Entry(task="pair", weight=3.0), Entry(task="z")]
    groups = {"pair": members({"x": 0.5, "y": 0.5})} | lone("z")
    random = np.random.default_rng(0)
    sizes = {"x": 400, "y": 20, "z": 100}

    def score() -> Score:
        found = report(**{name: {"acc": random.integers(2, size=size).tolist()} for name, size in sizes.items()})
        objective = objective_of(entries, groups, sizes)
        measured = measure(objective, found, groups)
        return Score(objective.of_entries(measured.climbed), measured, found, groups, {})

    ours, theirs = score(), score()
    found = certificate.against(entries, ours, theirs)
    assert found.gain == pytest.approx(ours.value - theirs.value)
    apart = {
        name: ours.report.tasks[name].metrics["acc"] - theirs.report.tasks[name].metrics["acc"] for name in sizes
    }
    shares = {"x": 3 / 8, "y": 3 / 8, "z": 1 / 4}
    assert found.gain == pytest.approx(sum(shares[name] * own.mean() for name, own in apart.items()))
    error = math.sqrt(sum(shares[name] ** 2 * own.var(ddof=1) / own.size for name, own in apart.items()))
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.04)
    flips = math.sqrt(sum((shares[name] / own.size) ** 2 * (own**2).sum() for name, own in apart.items()))
    assert found.p == pytest.approx(math.erfc(abs(found.gain) / flips / math.sqrt(2)), abs=0.03)


class _Scored:
    """A pool that knows all scores beforehand."""

    size = 1
    note: str | None = None

    def __init__(self, truncated: dict[str, int], names: list[str]) -> None:
        self.objective = Objective({})
        self._truncated, self._names = truncated, names

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        for job in jobs:
            assert isinstance(job, Job)
            count = self._truncated.get(self._names[job.key], 30)
            result = TaskScore(np.arange(100), {"acc": np.arange(100) % 2.0}, {"acc": 0.5})
            scored = Report({"first_test": result}, 0, 0, {"first_test": count}, {"first_test": 0})
            groups = lone("first_test")
            measured = measure(Objective({"first_test": 100}), scored, groups)
            yield Outcome(job.key, Score(0.5, measured, scored, groups, {}))

    def close(self) -> None:
        pass


def test_a_certificate_warns_where_truncation_differs(write_experiment: Callable[..., Path]) -> None:
    plan = make_plan(experiment.load_experiment(write_experiment()))
    winner = plan.laid.decode(genes.initial(plan.coordinates))
    names = list(certificate.contestants(plan, winner))
    calm = certificate.certify(plan, winner, _Scored({}, names))
    assert calm.warnings == ()
    found = certificate.certify(plan, winner, _Scored({"winner": 3, "expert ant": 5}, names))
    (warning,) = found.warnings
    assert "of 100 answers the winner had 3 cut off, base 30, expert bee 30, uniform average 30;" in warning
    assert json.loads(json.dumps(certificate.as_json(found)))["warnings"] == [warning]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.certificate_table(found))
    assert "warning: first_test: truncation differs" in console.export_text()
