"""What `status` and `run` say of a study besides its numbers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from evomerge import records, report
from evomerge.candidate import Score
from evomerge.config import Budget
from evomerge.fitness import Measured
from evomerge.records import Trial
from evomerge.scoring import Report, TaskScore


class _Experiment:
    budget = Budget(candidates=5)


def _study(folder: Path, counts: list[int]) -> list[Trial]:
    """Trials of one generation task with so many of 200 answers truncated; the last is the best."""
    trials = []
    for number, count in enumerate(counts):
        result = TaskScore(np.arange(200), {"exact_match": np.zeros(200)}, {"exact_match": 0.0})
        found = Report({"sums": result}, 0, 0, {"sums": count}, {"sums": 0})
        measured = Measured(number / 10, {"sums": 0.0}, {"sums": 0.0})
        records.write_score(folder, f"{number}", "f", Score(measured, found, {"sums": ("sums",)}, {}))
        values = {"value": measured.value, "tasks": measured.tasks, "climbed": measured.climbed, "seconds": {}}
        trials.append(Trial(number, 0, number, {}, f"{number}", "f", truncated=count, **values))  # type: ignore[arg-type]
    return trials


def test_a_winner_whose_answers_end_sooner_is_warned_of(tmp_path: Path) -> None:
    trials = _study(tmp_path, [44, 0, 40, 38, 12])
    found = report.summary(trials, _Experiment(), str(tmp_path))
    (warning,) = found["warnings"]
    assert "sums: truncation differs: of 200 answers trial 4 had 12 cut off, the median trial 38;" in warning
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(report.summary_table(found))
    assert warning in console.export_text()


def test_like_truncation_is_no_cause_for_a_warning(tmp_path: Path) -> None:
    for name, counts in {"none": [0, 0, 0], "alike": [30, 41, 33]}.items():
        assert (
            report.summary(_study(tmp_path / name, counts), _Experiment(), str(tmp_path / name))["warnings"] == []
        )


def test_a_study_without_its_documents_has_no_warnings(tmp_path: Path) -> None:
    trials = _study(tmp_path, [44, 40, 12])
    assert report.summary(trials, _Experiment(), str(tmp_path / "elsewhere"))["warnings"] == []
    assert report.summary([], _Experiment(), str(tmp_path))["warnings"] == []
