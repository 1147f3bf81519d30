"""The log of finished trials in a database: SQLite, PostgreSQL, or another one that Optuna takes."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import column, table
from sqlalchemy.exc import SQLAlchemyError

from evomerge.errors import StudyError
from evomerge.files.writing import write_text
from evomerge.studies.folder import DATABASE, EXPERIMENT, STORAGE_NAME
from evomerge.studies.optuna_log import STUDY_NAME, in_order, open_study, undamaged
from evomerge.studies.storage import IN_SQLITE, SQLITE_URL
from evomerge.studies.trials import Trial

_PATIENCE = 60  # seconds for which a writer waits for the readers of a database file
_OPENED = "cannot be opened: {}; check `storage`, and that the database runs and lets you in"

# The tables and columns of Optuna that are read here.
_STUDIES = table("studies", column("study_id"), column("study_name"))
_TRIALS = table("trials", column("trial_id"), column("study_id"), column("state"))
_ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))


class Database:
    """A log in a database: STUDY/journal.db, another file, or a server.

    In a database outside of STUDY the study has a name of its own, with a random part. The file STUDY/storage_name
    keeps that name. It is written once the study is in the database, and moves with the folder.

    Optuna writes a trial in one transaction, so no trial is torn. If the connection breaks before the answer,
    Optuna writes the trial again: a trial may be there twice, and counts once. Trials are read from their
    attributes alone, without Optuna, which reads each parameter with its distribution and takes ten times as long.

    Attributes:
        mark: the path of the file that exists once the log is begun.
    """

    def __init__(self, folder: Path, storage: str) -> None:
        self._inside = storage == IN_SQLITE
        self.mark = folder / (DATABASE if self._inside else STORAGE_NAME)
        self._storage = storage

    @property
    def begun(self) -> bool:
        """Whether the log exists, as far as the study's folder tells; it may be empty."""
        return self.mark.is_file()

    def open(self, objectives: Sequence[str]) -> optuna.Study:
        """The Optuna study, made if the log is not begun.

        Args:
            objectives: the names of its values; () for one value without a name.

        Raises:
            StudyError: the database cannot be opened, or the study that was in it is gone.
        """
        name = self._name()
        if name and not self._inside:
            self._require(name)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        options: dict[str, Any] = {"pool_pre_ping": True}  # a candidate may take longer than a connection lives
        if self._file:
            options = {"connect_args": {"timeout": _PATIENCE}}
        url = self._url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        with self._answering(_OPENED):
            study = open_study(RDBStorage(url, options), name or self._new_name(), objectives)
        if not self._inside and not name:
            write_text(self.mark, f"{study.study_name}\n")
        return study

    def trials(self, study: optuna.Study | None) -> list[Trial]:
        """All trials in their order, read anew. The open study is not needed for it.

        Raises:
            StudyError: the database cannot be read, or a trial in it is damaged.
        """
        name = self._name()
        with self._answering(_OPENED), self._connection() as connection:
            number = self._study_number(connection, name)
            if number is None and self._inside:
                return []  # the process was killed before it put the study into the database
            if number is None:
                raise self._lacks(name)
            with undamaged(self._where):
                return in_order(_records(connection, number))

    def writing(self) -> AbstractContextManager[None]:
        """Turns the error of a database that does not take a trial into one clear line."""
        return self._answering("cannot be written: {}; what is finished is kept: go on with `evomerge resume`")

    def check(self) -> None:
        """Raises StudyError if the database cannot be opened. Writes nothing."""
        if self._file and not self._file.parent.is_dir():
            raise StudyError(f"storage: there is no folder {self._file.parent}")
        if self._file and not self._file.exists():
            return
        with self._answering(_OPENED), self._connection() as connection:
            self._study_number(connection, "")

    @cached_property
    def _url(self) -> sqlalchemy.URL:
        """The database's address."""
        if self._inside:
            return sqlalchemy.URL.create("sqlite", database=str(self.mark))
        return _url(self._storage)

    @property
    def _file(self) -> Path | None:
        """The database's file, if it is one."""
        return Path(self._url.database or "") if self._url.drivername == "sqlite" else None

    @property
    def _where(self) -> str:
        """The database's address, without user and password."""
        return str(
            self._file or f"{self._url.get_backend_name()}://{self._url.host or ''}/{self._url.database or ''}"
        )

    def _name(self) -> str:
        """The name of the Optuna study; empty if it has none yet."""
        if self._inside:
            return STUDY_NAME
        return self.mark.read_text(encoding="utf-8").strip() if self.begun else ""

    def _new_name(self) -> str:
        """A name that no other study in the database has: that of the folder, with a random part."""
        return f"{self.mark.absolute().parent.name[:100]}-{uuid.uuid4().hex[:12]}"

    def _require(self, name: str) -> None:
        """Refuses a database that does not have the study of that name."""
        with self._answering(_OPENED), self._connection() as connection:
            if self._study_number(connection, name) is None:
                raise self._lacks(name)

    def _lacks(self, name: str) -> StudyError:
        """The error that says that the database has no study of that name."""
        return StudyError(
            f"{self._where} has no study {name}: put `storage` in {self.mark.with_name(EXPERIMENT)} right, "
            f"or remove {self.mark} to begin a new log"
        )

    @contextmanager
    def _connection(self) -> Iterator[sqlalchemy.Connection]:
        """A connection that makes neither a database nor a table."""
        if self._file and not self._file.is_file():
            raise StudyError(f"there is no database {self._file}; restore it, or start a new study")
        engine = sqlalchemy.create_engine(self._url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            yield connection

    def _study_number(self, connection: sqlalchemy.Connection, name: str) -> int | None:
        """The number that the database has for the study of a name; None if it has no such study."""
        if not sqlalchemy.inspect(connection).has_table(_STUDIES.name):
            return None
        query = sqlalchemy.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name)
        number: int | None = connection.execute(query).scalar_one_or_none()
        return number

    @contextmanager
    def _answering(self, sentence: str) -> Iterator[None]:
        """Turns an error of the database, its driver or Optuna into one line without a password.

        Args:
            sentence: what went wrong, with {} for the reason.

        Raises:
            StudyError: for any such error.
        """
        try:
            yield
        except ImportError as error:
            name = getattr(error.__cause__ or error, "name", None) or "driver"
            cure = ": pip install 'evomerge[postgresql]'" if name == "psycopg2" else ""
            raise StudyError(f"{self._where} needs the Python package {name}, which is not here{cure}") from error
        except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
            for secret in (self._url.password, self._url.query.get("password")):
                reason = reason.replace(str(secret), "***") if secret else reason
            raise StudyError(f"{self._where} {sentence.format(reason)}") from error


def _records(connection: sqlalchemy.Connection, study: int) -> Iterator[dict[str, Any]]:
    """The attributes of each finished trial of a study that evomerge wrote, in the order of the trials."""
    state = sqlalchemy.cast(_TRIALS.c.state, sqlalchemy.String(8))  # PostgreSQL and MySQL have an enumeration
    query = (
        sqlalchemy.select(_TRIALS.c.trial_id, _ATTRIBUTES.c.key, _ATTRIBUTES.c.value_json)
        .join_from(_TRIALS, _ATTRIBUTES, _TRIALS.c.trial_id == _ATTRIBUTES.c.trial_id)
        .where(_TRIALS.c.study_id == study, state.in_([TrialState.COMPLETE.name, TrialState.FAIL.name]))
        .order_by(_TRIALS.c.trial_id)
    )
    for _, rows in groupby(connection.execute(query), key=itemgetter(0)):
        record = {key: json.loads(value) for _, key, value in rows}
        if "recipe" in record:
            yield record


def _url(storage: str) -> sqlalchemy.URL:
    """The address that a `storage` gives, with its environment variables filled in.

    Raises:
        StudyError: a variable is not set, or the text is no URL.
    """
    if storage.startswith(SQLITE_URL):
        return sqlalchemy.URL.create("sqlite", database=_filled(storage.removeprefix(SQLITE_URL), str))
    place, mark, query = storage.partition("?")
    user, at, host = place.rpartition("@")
    try:
        url = sqlalchemy.make_url(_filled(user, _quoted) + at + _filled(host, str) + mark + _filled(query, _quoted))
    except (ValueError, SQLAlchemyError):  # whose texts may show a part of the password
        raise StudyError("storage: is no URL of a database; write postgresql://USER@HOST/NAME") from None
    # Which driver is meant without a name depends on SQLAlchemy's version.
    return url.set(drivername="postgresql+psycopg2") if url.drivername == "postgresql" else url


def _filled(text: str, write: Callable[[str], str]) -> str:
    """A text in which each ${NAME} is replaced by the value of that environment variable.

    Args:
        write: gives the text to put in for a value, such as the value quoted for a URL.

    Raises:
        StudyError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise StudyError(f"storage: the environment variable {match[1]} is not set")
        return write(os.environ[match[1]])

    return re.sub(r"\$\{(\w+)\}", value, text)


def _quoted(text: str) -> str:
    """A text as it is written inside of a URL."""
    return urllib.parse.quote(text, safe="")
