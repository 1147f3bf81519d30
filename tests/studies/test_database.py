"""The log of a study in a file, a database file and a PostgreSQL server, which must all keep it alike."""

from __future__ import annotations

import json
import multiprocessing
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from sqlalchemy import event
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.errors import ConfigError, StudyError
from evomerge.searching.spaces.genes import Coordinate
from evomerge.studies.experiment import experiment_to_yaml, load_experiment
from evomerge.studies.folder import DATABASE, EXPERIMENT, JOURNAL, STORAGE_NAME
from evomerge.studies.journal import Journal, check_storage, exists, read_trials
from evomerge.studies.trials import Trial

COORDINATES = [
    Coordinate("weight.a", 0.0, 1.5, 0.5, log=False),
    Coordinate("weight.b", 0.01, 1.0, 0.1, log=True),
    Coordinate("method", 0.0, 1.0, "ties", False, ("ties", "dare_ties")),
]


def trial(number: int, value: float | None = 0.5, **others: Any) -> Trial:
    climbed = {} if value is None else {"sums": value + 1e-17, "names": 1.0 - value}
    kept: dict[str, Any] = {
        "number": number,
        "generation": number // 4,
        "slot": number % 4,
        "genome": {"weight.a": number % 100 / 97, "weight.b": 1 / 3, "method": ("ties", "dare_ties")[number % 2]},
        "recipe": f"{number:064x}",
        "fitness": "f",
        "value": value,
        "tasks": climbed,
        "climbed": climbed,
        "seconds": {"merge": 0.1},
        "reason": "because of ‘this’: \x00 100 %" if value is None else None,
    }
    return Trial(**(kept | others))


def full() -> Trial:
    """A trial whose every optional field is set."""
    return trial(
        2,
        0.1 + 0.2,
        tokens=7,
        documents=12,
        truncated=1,
        elapsed=1.25,
        weights_sha256="0" * 64,
        reason="x",
        role="select",
        blocks=(0.1, 1 / 3),
        all_documents=False,
        incumbent=True,
        log_length_when_asked=2,
        gradient={"weight.a": -1e-300},
        search_digest="c",
        parent="maths",
        training_records={"distillation": {"steps": 3, "loss": [[1, 0.1]]}},
    )


# --- the places --------------------------------------------------------------------------------------------


Make = Callable[[str], Path]


def make_study(folder: Path, storage: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / EXPERIMENT).write_text(yaml.safe_dump({"storage": storage}))
    return folder


@pytest.fixture(params=["journal", "sqlite", "sqlite file", "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes a study's folder, by its name, with one kind of storage."""
    storage: str = request.param
    if storage == "sqlite file":
        storage = f"sqlite:///{tmp_path}/all {{of}} them?.db"
    elif storage == "postgresql":
        storage = request.getfixturevalue("server")
    return lambda name: make_study(tmp_path / name, storage)


def load(folder: Path) -> optuna.Study:
    """The Optuna study of a log."""
    return Journal(folder, COORDINATES)._study


# --- round trips -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_field_of_a_trial_comes_back(make: Make) -> None:
    last = full()
    assert all(getattr(last, f.name) != f.default for f in fields(Trial) if f.name != "evaluation")
    written = [trial(0), trial(1, None), last]
    folder = make("study")
    journal = Journal(folder, COORDINATES)
    for one in written:
        journal.add(one)
    assert journal.trials() == written
    assert read_trials(folder) == written
    again = Journal(folder, COORDINATES).trials()
    assert again == written
    assert [list(one.genome) for one in again] == [list(one.genome) for one in written]
    assert isinstance(again[2].blocks, tuple)


def test_a_log_exists_once_it_is_begun(make: Make) -> None:
    folder = make("study")
    assert not exists(folder)
    with pytest.raises(StudyError, match="is no study: it has no "):
        read_trials(folder)
    Journal(folder, COORDINATES)
    assert exists(folder)
    assert read_trials(folder) == []


def test_a_study_whose_folder_is_moved_keeps_its_log(make: Make) -> None:
    folder = make("study")
    Journal(folder, COORDINATES).add(trial(0))
    moved = folder.rename(folder.with_name("moved"))
    Journal(moved, COORDINATES).add(trial(1))
    assert [one.number for one in read_trials(moved)] == [0, 1]


@pytest.mark.slow
def test_two_studies_in_one_database_do_not_mix(make: Make) -> None:
    first, second = Journal(make("first"), COORDINATES), Journal(make("second"), COORDINATES, ["sums", "names"])
    for number in range(3):
        first.add(trial(number, 0.25))
        second.add(trial(number, 0.75))
    assert {one.value for one in first.trials()} == {0.25}
    assert {one.value for one in second.trials()} == {0.75}
    assert [one.number for one in second.trials()] == [0, 1, 2]


def test_optuna_sees_the_parameters_and_values_and_which_trials_failed(make: Make) -> None:
    folder = make("study")
    journal = Journal(folder, COORDINATES)
    for number, value in enumerate([0.25, None, 0.75]):
        journal.add(trial(number, value))
    study = load(folder)
    assert study.best_value == 0.75
    assert study.best_params == pytest.approx(trial(2).genome)
    assert [one.state.name for one in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_optuna_sees_several_objectives_by_name(make: Make) -> None:
    folder = make("study")
    written = [trial(0, 0.25), trial(1, None), trial(2, 0.75), trial(3, 0.7)]
    journal = Journal(folder, COORDINATES, ["names", "sums"])
    for one in written:
        journal.add(one)
    assert read_trials(folder) == written
    again = Journal(folder, COORDINATES, ["names", "sums"])
    assert again.trials() == written
    assert again._study.metric_names == ["names", "sums"]
    assert [one.values for one in again._study.trials] == [
        None if one.value is None else [one.climbed["names"], one.climbed["sums"]] for one in written
    ]
    assert {one.number for one in again._study.best_trials} == {0, 2, 3}


# --- what others and kills leave ---------------------------------------------------------------------------


@pytest.mark.slow
def test_trials_of_others_and_torn_ones_are_not_of_the_log(make: Make) -> None:
    folder = make("study")
    journal = Journal(folder, COORDINATES)
    journal.add(trial(0))
    study = load(folder)
    study.ask().suggest_float("x", 0.0, 1.0)  # running for ever
    study.tell(study.ask(), 3.0)  # finished, but not ours
    torn = study.ask()
    torn.set_user_attr("number", 1)
    torn.set_user_attr("recipe", "r")
    again = Journal(folder, COORDINATES)
    assert [one.number for one in again.trials()] == [0]
    again.add(trial(1))
    assert read_trials(folder) == [trial(0), trial(1)]


@pytest.mark.slow
def test_a_trial_that_was_written_twice_counts_once(make: Make) -> None:
    folder = make("study")
    journal = Journal(folder, COORDINATES)
    for one in (trial(0), trial(1), trial(1), trial(2)):
        journal.add(one)
    assert read_trials(folder) == [trial(0), trial(1), trial(2)]


@pytest.mark.parametrize(("number", "why"), [(1, "two copies of the study have been run"), (3, "is missing")])
def test_a_log_that_does_not_count_up_is_refused(make: Make, number: int, why: str) -> None:
    folder = make("study")
    journal = Journal(folder, COORDINATES)
    for one in (trial(0), trial(1), trial(number, 0.125)):
        journal.add(one)
    with pytest.raises(StudyError, match=f"is damaged .*{why}"):
        read_trials(folder)


def _write_on(folder: Path) -> None:
    journal = Journal(folder, COORDINATES)
    for number in count(len(journal.trials())):
        journal.add(trial(number))


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_log_that_goes_on(make: Make) -> None:
    folder = make("study")
    moments = random.Random(0)
    lengths = [0]
    for _ in range(5):
        writer = multiprocessing.get_context("fork").Process(target=_write_on, args=(folder,))
        writer.start()
        try:
            deadline = time.monotonic() + 60
            while not (exists(folder) and len(read_trials(folder)) > lengths[-1]):
                assert writer.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(moments.uniform(0.0, 0.2))
        finally:
            writer.kill()
            writer.join()
        found = Journal(folder, COORDINATES).trials()
        assert found == [trial(number) for number in range(len(found))]
        lengths.append(len(found))
    assert lengths == sorted(set(lengths))
    Journal(folder, COORDINATES).add(trial(lengths[-1]))
    assert len(read_trials(folder)) == lengths[-1] + 1


@pytest.mark.parametrize("make", ["sqlite", "sqlite file", "postgresql"], indirect=True)
def test_a_trial_is_one_transaction(make: Make) -> None:
    journal = Journal(make("study"), COORDINATES)
    commits: list[Any] = []
    changes: list[Any] = []
    engine = journal._study._storage._backend.engine  # type: ignore[attr-defined]
    event.listen(engine, "commit", lambda connection: commits.append(len(changes)))
    event.listen(
        engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, *rest: changes.append(statement) if "INSERT" in statement else None,
    )
    journal.add(trial(0))
    assert len(changes) > len(COORDINATES)
    assert commits == [len(changes)]


def test_a_database_whose_making_was_killed_is_made_again(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", "sqlite")
    (folder / DATABASE).touch()
    assert read_trials(folder) == []
    with sqlite3.connect(folder / DATABASE) as connection:
        connection.execute("CREATE TABLE studies (study_id INTEGER PRIMARY KEY, study_name VARCHAR(512) NOT NULL)")
    connection.close()
    assert read_trials(folder) == []
    Journal(folder, COORDINATES).add(trial(0))
    assert read_trials(folder) == [trial(0)]


def test_reading_does_not_write(make: Make, tmp_path: Path) -> None:
    folder = make("study")
    Journal(folder, COORDINATES).add(trial(0))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read_trials(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_journal_of_an_earlier_version_is_refused_by_name(tmp_path: Path) -> None:
    Journal(tmp_path, COORDINATES).add(trial(0))
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    entry = json.loads(lines[-1])
    entry["user_attrs"]["whole"] = entry["user_attrs"].pop("all_documents")
    (tmp_path / JOURNAL).write_text("\n".join([*lines[:-1], json.dumps(entry)]) + "\n")
    with pytest.raises(StudyError, match=r"journal.log: .* written by an earlier version of evomerge"):
        read_trials(tmp_path)


# --- errors ------------------------------------------------------------------------------------------------


def refuses(storage: str, tmp_path: Path, match: str) -> str:
    """The one line with which a storage is refused, by the check and by the log."""
    with pytest.raises(StudyError, match=match) as first:
        check_storage(storage)
    with pytest.raises(StudyError, match=match):
        Journal(make_study(tmp_path / "refused", storage), COORDINATES)
    assert "\n" not in str(first.value)
    return str(first.value)


def test_a_wrong_password_is_one_line_that_does_not_show_it(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_storage(server)
    monkeypatch.setenv("EVOMERGE_TEST_PASSWORD", "t0p-secret")
    assert "t0p-secret" not in refuses(server, tmp_path, 'cannot be opened: .*authentication failed for user "evo"')
    monkeypatch.delenv("EVOMERGE_TEST_PASSWORD")
    refuses(server, tmp_path / "..", "the environment variable EVOMERGE_TEST_PASSWORD is not set")


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("psycopg2")
    line = refuses(f"postgresql://me:t0p-secret@/x?host={tmp_path}", tmp_path, "cannot be opened: .*No such file")
    assert "t0p-secret" not in line


def test_a_missing_driver_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    storage = "postgresql://me:t0p-secret@nowhere/x"
    line = refuses(storage, tmp_path, r"needs the Python package psycopg2, .*pip install 'evomerge\[postgresql\]'")
    assert "t0p-secret" not in line


def test_an_address_that_cannot_be_read_does_not_show_its_password(tmp_path: Path) -> None:
    line = refuses("postgresql://me:pass/word@host:t0p-secret/x", tmp_path, "is no URL of a database")
    assert "t0p-secret" not in line


def test_a_database_without_the_study_is_refused(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", f"sqlite:///{tmp_path}/one.db")
    Journal(folder, COORDINATES).add(trial(0))
    name = (folder / STORAGE_NAME).read_text().strip()
    Journal(make_study(tmp_path / "other", f"sqlite:///{tmp_path}/two.db"), COORDINATES)
    for wrong, why in (("two.db", f"has no study {name}: put `storage` in"), ("three.db", "there is no database")):
        (folder / EXPERIMENT).write_text(yaml.safe_dump({"storage": f"sqlite:///{tmp_path}/{wrong}"}))
        with pytest.raises(StudyError, match=why):
            read_trials(folder)
        with pytest.raises(StudyError, match=why):
            Journal(folder, COORDINATES)
    assert not (tmp_path / "three.db").exists()


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", "sqlite")
    Journal(folder, COORDINATES).add(trial(0))
    (folder / DATABASE).write_bytes(b"nonsense" * 1000)
    for read in (lambda: read_trials(folder), lambda: Journal(folder, COORDINATES)):
        with pytest.raises(StudyError, match=r"journal\.db cannot be opened: file is not a database"):
            read()


@pytest.mark.slow
def test_a_database_that_is_full_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", "sqlite")
    journal = Journal(folder, COORDINATES)
    journal.add(trial(0))
    engine = journal._study._storage._backend.engine  # type: ignore[attr-defined]

    def limit(connection: Any, *rest: Any) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    event.listen(engine, "checkout", limit)
    with pytest.raises(StudyError, match=r"cannot be written: .*is full; what is finished is kept: go on with"):
        journal.add(trial(1, reason="long" * 100_000))
    assert Journal(folder, COORDINATES).trials() == [trial(0)]


def test_the_command_line_refuses_a_storage_before_any_model_is_read(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_experiment(storage="sqlite:///nowhere/x.db", base="missing")
    for command in ("run", "check"):
        result = CliRunner().invoke(app, [command, str(path)])
        assert result.exit_code == 2
        assert f"storage: there is no folder {tmp_path}/nowhere" in result.output
    assert not (tmp_path / "study").exists()


# --- the experiment's key ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, "journal"),
        ("sqlite", "sqlite"),
        ("sqlite:///logs/x.db", "sqlite:///{here}/logs/x.db"),
        ("sqlite:////logs/x.db", "sqlite:////logs/x.db"),
        ("sqlite:///${LOGS}/x.db", "sqlite:///${LOGS}/x.db"),
        ("postgresql+psycopg2://me:${PASSWORD}@host:5432/x", "postgresql+psycopg2://me:${PASSWORD}@host:5432/x"),
    ],
)
def test_an_experiment_says_where_its_log_is(
    write_experiment: Callable[..., Path], tmp_path: Path, given: str | None, kept: str
) -> None:
    experiment = load_experiment(write_experiment(storage=given))
    assert experiment.storage == kept.format(here=tmp_path) if "here" in kept else kept
    (tmp_path / "copy.yaml").write_text(experiment_to_yaml(experiment))
    assert load_experiment(tmp_path / "copy.yaml") == experiment


@pytest.mark.parametrize("wrong", ["", "file", "sqlite://", "sqlite:///:memory:", "mongodb://me:t0p-secret@x/y"])
def test_what_is_no_storage_is_refused(write_experiment: Callable[..., Path], wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"storage: must be journal, sqlite, sqlite:///PATH, or .*") as error:
        load_experiment(write_experiment(storage=wrong))
    assert len(error.value.faults) == 1
    assert "t0p-secret" not in str(error.value)


def test_a_password_with_an_at_sign_is_refused_without_showing_it(write_experiment: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"storage: has more than one @: .*%40") as error:
        load_experiment(write_experiment(storage="postgresql://me:t0p@secret@host/x"))
    assert "secret" not in str(error.value)


# --- Optuna's tools ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "plot", ["plot_optimization_history", "plot_parallel_coordinate", "plot_param_importances"]
)
def test_optuna_draws_a_study(make: Make, plot: str) -> None:
    pytest.importorskip("plotly")
    folder = make("study")
    journal = Journal(folder, COORDINATES)
    for number in range(8):
        journal.add(trial(number, None if number == 3 else number / 8))
    assert getattr(optuna.visualization, plot)(load(folder)).data


@pytest.mark.slow
def test_optuna_draws_the_front_of_several_objectives(make: Make) -> None:
    pytest.importorskip("plotly")
    folder = make("study")
    journal = Journal(folder, COORDINATES, ["sums", "names"])
    for number in range(8):
        journal.add(trial(number, None if number == 3 else number / 8))
    figure = optuna.visualization.plot_pareto_front(load(folder))
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("sums", "names")


def test_a_log_is_not_begun_again_elsewhere(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", "journal")
    Journal(folder, COORDINATES).add(trial(0))
    make_study(folder, "sqlite")
    with pytest.raises(StudyError, match=r"its log is in journal\.log, not where `storage`"):
        Journal(folder, COORDINATES)
    make_study(folder, "journal")
    assert len(Journal(folder, COORDINATES).trials()) == 1
