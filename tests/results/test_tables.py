"""What `status` and `run` say of a study besides its numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from evomerge.results import summary, tables
from evomerge.scoring.fitness import Entry, Fitness
from evomerge.scoring.measured import Measured
from evomerge.scoring.reports import Report, TaskScore
from evomerge.searching.spaces.space import SearchSpace
from evomerge.studies import scores
from evomerge.studies.candidates.score import Score
from evomerge.studies.experiment import Budget, SamplerChoice
from evomerge.studies.trials import Trial
from tests.helpers.objectives import lone
from tests.helpers.trials import make_trial


class _Experiment:
    budget = Budget(candidates=5)
    sampler = SamplerChoice(name="nsga2")
    space = SearchSpace.model_validate({"method": "linear", "genes": {"weight": {"low": 0.0, "high": 1.0}}})
    experts = ("a", "b")
    operators = ()
    fitness = Fitness(search=(Entry(task="maths"), Entry(task="code")))


class _Several(_Experiment):
    fitness = Fitness(search=(Entry(task="maths"), Entry(task="code")), objective="pareto")


def _study(folder: Path, counts: list[int]) -> list[Trial]:
    """Trials of one generation task with so many of 200 answers truncated; the last is the best."""
    trials = []
    for number, count in enumerate(counts):
        result = TaskScore(np.arange(200), {"exact_match": np.zeros(200)}, {"exact_match": 0.0})
        found = Report({"sums": result}, 0, 0, {"sums": count}, {"sums": 0})
        measured = Measured({"sums": 0.0}, {"sums": 0.0})
        score = Score(number / 10, measured, found, lone("sums", "exact_match"), {})
        scores.write_score(folder, f"{number}", "f", score)
        values: dict[str, Any] = {"tasks": measured.tasks, "climbed": measured.climbed, "truncated": count}
        trials.append(make_trial(number, score.value, generation=0, slot=number, **values))
    return trials


def test_a_winner_whose_answers_end_sooner_is_warned_of(tmp_path: Path) -> None:
    trials = _study(tmp_path, [44, 0, 40, 38, 12])
    found = summary.summary(trials, _Experiment(), str(tmp_path))
    (warning,) = found["warnings"]
    assert "sums: truncation differs: of 200 answers trial 4 had 12 cut off, the median trial 38;" in warning
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(tables.summary_table(found))
    assert warning in console.export_text()


def test_like_truncation_is_no_cause_for_a_warning(tmp_path: Path) -> None:
    for name, counts in {"none": [0, 0, 0], "alike": [30, 41, 33]}.items():
        assert (
            summary.summary(_study(tmp_path / name, counts), _Experiment(), str(tmp_path / name))["warnings"] == []
        )


def test_a_study_without_its_documents_has_no_warnings(tmp_path: Path) -> None:
    trials = _study(tmp_path, [44, 40, 12])
    assert summary.summary(trials, _Experiment(), str(tmp_path / "elsewhere"))["warnings"] == []
    assert summary.summary([], _Experiment(), str(tmp_path))["warnings"] == []


def _text(table: object) -> str:
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_of_several_objectives_the_front_is_shown(tmp_path: Path) -> None:
    trials = []
    for number, (maths, code) in enumerate([(0.1, 0.1), (0.5, 0.1), (0.4, 0.4), (0.1, 0.5), (0.3, 0.3)]):
        climbed = {"maths": maths, "code": code}
        values: dict[str, Any] = {"tasks": climbed, "climbed": climbed, "generation": number // 2}
        trials.append(make_trial(number, (maths + code) / 2, genome={"weight": 0.5}, **values))
    found = summary.summary(trials, _Several(), str(tmp_path))
    assert [one["number"] for one in found["front"]] == [2, 1, 3]
    assert found["knee"] == 2
    assert abs(found["hypervolume"] - 0.09) < 1e-12
    assert "3 trials, hypervolume 0.09" in _text(tables.summary_table(found))
    shown = _text(tables.front_table([trials[2], trials[1], trials[3]], 2, 2))
    assert "front, as climbed (2 of 3, knee 2)" in " ".join(shown.split())
    assert "0.4000" in shown
    assert " 3 " not in shown.splitlines()[-2]
    assert "front" not in summary.summary(trials, _Experiment(), str(tmp_path))
    assert "front" not in summary.summary([], _Several(), str(tmp_path))


def test_warnings_of_the_search_stand_with_the_others(tmp_path: Path) -> None:
    trials = [
        make_trial(
            n, 0.5, genome={"weight": n / 40}, generation=n // 5, slot=n % 5, tasks={"t": 0.5}, climbed={"t": 0.5}
        )
        for n in range(40)
    ]
    found = summary.summary(trials, _Experiment(), str(tmp_path))
    (warning,) = found["warnings"]
    assert "in 8 of 8 generations all candidates have the same fitness" in warning
    assert warning in _text(tables.summary_table(found))
