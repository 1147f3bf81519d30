"""What studies use of Optuna beyond its promises: the tables of a database, which are read by SQL alone, and the
files of a journal. Each test names the part that went."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

COLUMNS = {
    "studies": {"study_id", "study_name"},
    "trials": {"trial_id", "study_id", "state"},
    "trial_user_attributes": {"trial_id", "key", "value_json"},
}


@pytest.fixture
def engine(tmp_path: Path) -> sqlalchemy.Engine:
    """A database with one finished trial, as Optuna writes it."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=RDBStorage(url), study_name="canary")
    study.add_trial(optuna.create_trial(value=1.0, user_attrs={"recipe": "abc"}))
    return sqlalchemy.create_engine(url)


@pytest.mark.parametrize("table", COLUMNS)
def test_optunas_tables_have_the_columns_that_are_read(engine: sqlalchemy.Engine, table: str) -> None:
    inspector = sqlalchemy.inspect(engine)
    assert inspector.has_table(table), f"Optuna's table {table} went"
    there = {column["name"] for column in inspector.get_columns(table)}
    assert COLUMNS[table] <= there, f"columns of Optuna's table {table} went: {COLUMNS[table] - there}"


def test_a_trials_state_is_stored_by_its_name_and_attributes_as_json(engine: sqlalchemy.Engine) -> None:
    with engine.connect() as connection:
        states = connection.execute(sqlalchemy.text("SELECT state FROM trials")).scalars().all()
        values = connection.execute(sqlalchemy.text("SELECT value_json FROM trial_user_attributes")).scalars().all()
    assert states == [TrialState.COMPLETE.name], "Optuna stores a trial's state otherwise than by TrialState's name"
    assert [json.loads(value) for value in values] == ["abc"], "Optuna stores attributes otherwise than as JSON"


def test_a_journal_is_a_line_of_json_for_each_operation(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name="canary")
    before = path.read_bytes().count(b"\n")
    study.add_trial(optuna.create_trial(value=1.0, user_attrs={"recipe": "abc"}))
    lines = path.read_text().splitlines()
    assert len(lines) == before + 1, "Optuna's journal does not write a finished trial as one line any more"
    assert all(isinstance(json.loads(line), dict) for line in lines), "a line of Optuna's journal is no JSON"
