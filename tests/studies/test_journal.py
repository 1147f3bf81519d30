from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import StudyError
from evomerge.files import writing
from evomerge.scoring.measured import Measured
from evomerge.scoring.reports import Report, TaskScore
from evomerge.searching.spaces.genes import Coordinate
from evomerge.studies import scores
from evomerge.studies.candidates.score import Score
from evomerge.studies.folder import JOURNAL
from evomerge.studies.journal import Journal, exists, read_trials
from evomerge.studies.trials import Trial, best_trial
from tests.helpers.objectives import members

COORDINATES = [Coordinate("weight.a", 0.0, 1.5, 0.5, log=False)]


def trial(number: int, value: float | None = 0.5) -> Trial:
    return Trial(
        number=number,
        generation=number // 4,
        slot=number % 4,
        genome={"weight.a": 0.1 * number + 1e-17},
        recipe=f"{number:064x}",
        fitness="f",
        value=value,
        tasks={} if value is None else {"t": value},
        climbed={} if value is None else {"t": value},
        seconds={"merge": 0.1},
        reason="because" if value is None else None,
    )


def test_trials_come_back_as_they_were(tmp_path: Path) -> None:
    written = [trial(0), trial(1, None), trial(2, 0.1 + 0.2)]
    journal = Journal(tmp_path, COORDINATES)
    for one in written:
        journal.add(one)
    assert Journal(tmp_path, COORDINATES).trials() == written
    assert read_trials(tmp_path) == written


def test_a_trial_is_one_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, COORDINATES)
    lines = (tmp_path / JOURNAL).read_bytes().count(b"\n")
    journal.add(trial(0))
    assert (tmp_path / JOURNAL).read_bytes().count(b"\n") == lines + 1


@pytest.mark.parametrize("cut", [1, 2, 20, 200])
def test_a_last_line_that_a_kill_tore_is_cut(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path, COORDINATES)
    for number in range(3):
        journal.add(trial(number))
    path = tmp_path / JOURNAL
    os.truncate(path, path.stat().st_size - cut)
    again = Journal(tmp_path, COORDINATES)
    assert [one.number for one in again.trials()] == [0, 1]
    again.add(trial(2))
    assert [one.number for one in read_trials(tmp_path)] == [0, 1, 2]


def test_any_torn_beginning_opens(tmp_path: Path) -> None:
    Journal(tmp_path, COORDINATES).add(trial(0))
    whole = (tmp_path / JOURNAL).read_bytes()
    for cut in range(0, len(whole), 37):
        (tmp_path / JOURNAL).write_bytes(whole[:cut])
        assert len(Journal(tmp_path, COORDINATES).trials()) in (0, 1)


def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, COORDINATES)
    for number in range(3):
        journal.add(trial(number))
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    for broken in (b"{nonsense}\n", b"[1]\n"):
        (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:2], broken, *lines[3:]]))
        with pytest.raises(StudyError, match="line 3 is damaged"):
            Journal(tmp_path, COORDINATES)
    for broken in (b"{}\n", b""):
        (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:2], broken, *lines[3:]]))
        with pytest.raises(StudyError, match="is damaged"):
            Journal(tmp_path, COORDINATES).trials()
        with pytest.raises(StudyError, match="is damaged"):
            read_trials(tmp_path)


def test_a_journal_without_its_first_line_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path, COORDINATES).add(trial(0))
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join(lines[1:]))
    with pytest.raises(StudyError, match="is damaged"):
        read_trials(tmp_path)


def test_a_folder_without_an_experiment_has_its_log_in_the_journal(tmp_path: Path) -> None:
    assert not exists(tmp_path)
    Journal(tmp_path, COORDINATES)
    assert exists(tmp_path)
    assert (tmp_path / JOURNAL).is_file()


def test_a_result_under_another_fitness_is_not_taken(tmp_path: Path) -> None:
    scores.write_score(tmp_path, "r", "f", score())
    assert scores.read_score(tmp_path, "r", "g") is None


def test_the_lock_of_a_killed_writer_does_not_hold_up(tmp_path: Path) -> None:
    Journal(tmp_path, COORDINATES)
    (tmp_path / f"{JOURNAL}.lock").symlink_to(tmp_path / JOURNAL)
    Journal(tmp_path, COORDINATES).add(trial(0))


def test_one_process_alone_runs_a_study(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from evomerge.files.writing import lock
with lock(Path({str(tmp_path)!r})):
    pass
"""
    with writing.lock(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is being run by another process" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, COORDINATES)
    journal.add(trial(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # The next line gets on the disk in part: what a full disk does, by a limit on the file's size.
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / JOURNAL).stat().st_size + 50, limits[1]))
    try:
        with pytest.raises(
            StudyError, match=r"cannot be written: .*free some space and go on \(a study: `evomerge resume`\)"
        ):
            journal.add(trial(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    again = Journal(tmp_path, COORDINATES)
    assert [one.number for one in again.trials()] == [0]
    again.add(trial(1))


def score() -> Score:
    tasks = {
        "a/b": TaskScore(np.arange(3), {"acc": np.array([0.0, 1.0, 1.0])}, {"acc": 2 / 3}),
        "c": TaskScore(
            np.array([5, 9]), {"acc,none": np.array([0.1, 0.2]), "margin": np.zeros(2)}, {"acc,none": 0.15}
        ),
    }
    report = Report(tasks, tokens=7, padding=1, truncated={"c": 1}, cut_prompts={})
    return Score(
        0.5,
        Measured({"c": 0.15}, {"c": 0.2}),
        report,
        {"c": members({"c": 0.75, "d": 0.25}, "acc,none", "margin")},
        {"merge": 0.25},
        "f" * 64,
    )


def test_per_document_results_come_back_as_they_were(tmp_path: Path) -> None:
    scores.write_score(tmp_path, "r", "f", score())
    found = scores.read_score(tmp_path, "r", "f")
    assert found is not None
    assert dataclasses.replace(found, report=None) == dataclasses.replace(score(), report=None)  # type: ignore[arg-type]
    for name, task in score().report.tasks.items():
        again = found.report.tasks[name]
        assert (again.documents == task.documents).all()
        assert again.aggregates == task.aggregates
        assert all((again.metrics[m] == values).all() for m, values in task.metrics.items())


def test_truncated_answers_are_read_alone(tmp_path: Path) -> None:
    assert scores.read_truncated(tmp_path, "r", "f") is None
    scores.write_score(tmp_path, "r", "f", score())
    assert scores.read_truncated(tmp_path, "r", "f") == {"c": 1}
    assert scores.read_truncated(tmp_path, "r", "g") is None
    (tmp_path / "documents/r.npz").write_bytes(b"")
    assert scores.read_truncated(tmp_path, "r", "f") is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_result_is_made_again(tmp_path: Path, damage: str) -> None:
    scores.write_score(tmp_path, "r", "f", score())
    path = tmp_path / "documents" / "r.npz"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[data.index(np.array([0.1, 0.2]).tobytes())] ^= 0xFF
    path.write_bytes({"cut": bytes(data[:-40]), "flip": bytes(data), "empty": b""}[damage])
    assert scores.read_score(tmp_path, "r", "f") is None


def test_the_best_trial_is_the_first_of_equals_and_never_a_failed_one() -> None:
    trials = [trial(0, None), trial(1, 0.5), trial(2, 0.7), trial(3, 0.7)]
    found = best_trial(trials)
    assert found is not None
    assert found.number == 2
    assert best_trial([trial(0, None)]) is None


def test_the_journal_is_an_optuna_study(tmp_path: Path) -> None:
    import optuna

    journal = Journal(tmp_path, COORDINATES)
    for number in range(4):
        journal.add(trial(number, number / 4))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    study = optuna.load_study(study_name="evomerge", storage=optuna.storages.JournalStorage(backend))
    assert study.best_value == 0.75
    assert json.dumps(study.best_trial.user_attrs)
