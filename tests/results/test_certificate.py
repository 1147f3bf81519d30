from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evomerge.results import certificate, tables
from evomerge.scoring.fitness import Entry
from evomerge.scoring.measured import measure
from evomerge.scoring.reports import Report, TaskScore
from evomerge.searching.spaces import genes
from evomerge.studies import experiment
from evomerge.studies.candidates.score import Score
from evomerge.studies.plan import make_plan
from evomerge.studies.workers.jobs import Job, Outcome


def test_a_group_is_one_entry_of_all_its_documents() -> None:
    def score(values: dict[str, list[float]]) -> Score:
        tasks = {
            name: TaskScore(np.arange(len(found)), {"acc": np.array(found)}, {"acc": float(np.mean(found))})
            for name, found in values.items()
        }
        report = Report(tasks, tokens=0, padding=0, truncated={}, cut_prompts={})
        groups = {"pair": ("x", "y"), "z": ("z",)}
        return Score(0.5, measure(entries, report, groups), report, groups, {})

    entries = [Entry(task="pair"), Entry(task="z")]
    ours = score({"x": [1, 1, 1, 0], "y": [1, 0], "z": [1, 1]})
    theirs = score({"x": [0, 1, 0, 0], "y": [1, 1], "z": [0, 1]})
    found = certificate.against(entries, ours, theirs)
    assert found.gain == pytest.approx(ours.measured.mean - theirs.measured.mean)


class _Scored:
    """A pool that knows all scores beforehand."""

    size = 1
    note: str | None = None

    def __init__(self, truncated: dict[str, int], names: list[str]) -> None:
        self.documents: dict[str, int] = {}
        self._truncated, self._names = truncated, names

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        for job in jobs:
            assert isinstance(job, Job)
            count = self._truncated.get(self._names[job.key], 30)
            result = TaskScore(np.arange(100), {"acc": np.arange(100) % 2.0}, {"acc": 0.5})
            report = Report({"first_test": result}, 0, 0, {"first_test": count}, {"first_test": 0})
            groups: dict[str, tuple[str, ...]] = {"first_test": ("first_test",)}
            yield Outcome(
                job.key, Score(0.5, measure([Entry(task="first_test")], report, groups), report, groups, {})
            )

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
