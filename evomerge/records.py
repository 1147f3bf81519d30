"""What a study keeps on disk, and how it gets there whole.

STUDY/experiment.yaml   the experiment as run, complete in itself
STUDY/journal.log       finished trials, one line each, appended: an Optuna journal; with `storage: sqlite` it is
                        STUDY/journal.db, an Optuna database
STUDY/storage_name      the study's name in a database outside of STUDY, where its trials then are
STUDY/documents/        per-document results, one file a recipe
STUDY/answers/          what candidates answered, one file a recipe: see `scoring.answers`
STUDY/thresholds/       tables that merge methods look up; answers of the models that are learned from
STUDY/deltas/           what training operators left, one file a candidate
"""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import math
import os
import re
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from safetensors import SafetensorError
from sqlalchemy import column, table
from sqlalchemy.exc import SQLAlchemyError

from evomerge import catalog, config
from evomerge.candidate import Score
from evomerge.errors import StudyError
from evomerge.fitness import Measured
from evomerge.genes import Coordinate, Genome
from evomerge.samplers._alone import alone
from evomerge.samplers._optuna import distribution
from evomerge.scoring import Report, TaskScore

EXPERIMENT, JOURNAL, DOCUMENTS, TABLES = "experiment.yaml", "journal.log", "documents", "thresholds"
ANSWERS, DELTAS = "answers", "deltas"
DATABASE, STORAGE_NAME = "journal.db", "storage_name"
_FILE, _OWN, _SQLITE = "journal", "sqlite", "sqlite:///"  # kinds of `storage`
_NAME = "evomerge"  # of the Optuna study in a log that is in the study's folder
_PATIENCE = 60  # seconds for which a writer waits for the readers of a database file
_OPENED = "cannot be opened: {}; check `storage`, and that the database runs and lets you in"

# What is read of Optuna's tables.
_STUDIES = table("studies", column("study_id"), column("study_name"))
_TRIALS = table("trials", column("trial_id"), column("study_id"), column("state"))
_ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))


Role = Literal["search", "select", "final", "elite", "trained", "parent", "control"]


@dataclass(frozen=True)
class Trial:
    """A finished candidate, as the journal keeps it.

    Attributes:
        number: its place in the log; generation, slot: its place in the search.
        recipe, fitness: hashes of what was built and of what it was scored by.
        value: what the sampler climbs; None if the candidate failed.
        tasks, climbed: task -> reported metric, task -> climbed metric.
        seconds: spent in merge, operators and scoring; empty for a repeated recipe.
        documents: scored for this trial; 0 for a repeated recipe.
        elapsed: seconds that the study had been running for, all sessions together.
        reason: why it failed.
        role: `search`: asked for by the sampler, on the documents of its generation. `select`: compared with the
            incumbent, on documents that no search trial sees. `final`: the winner, on all documents. The other
            roles are of the second phase, all on all documents: `elite`, one of the best of the search; `trained`,
            the same after the training operators; `parent`; `control`, the best parent after the same training.
        blocks: its value on each block of documents, one behind the other; () where all were scored at once.
        whole: whether it was scored on all search documents, so that its value compares with any other's.
        incumbent: whether it was the best known from then on, of those compared.
        known: how many trials were in the log when its generation was asked for.
        gradient: coordinate -> derivative of the value; None where it was not asked for.
        course: a hash of the sampler and of how it was given documents.
        of: what a parent or a control is made of: the name of an expert, or `base`.
        left: training operator -> its record of what it did and took.
    """

    number: int
    generation: int
    slot: int
    genome: Genome
    recipe: str
    fitness: str
    value: float | None
    tasks: dict[str, float] = field(default_factory=dict)
    climbed: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    documents: int = 0
    truncated: int = 0
    elapsed: float = 0.0
    weights_sha256: str | None = None
    reason: str | None = None
    role: Role = "search"
    blocks: tuple[float, ...] = ()
    whole: bool = True
    incumbent: bool = False
    known: int = 0
    gradient: dict[str, float] | None = None
    course: str = ""
    of: str = ""
    left: dict[str, Any] = field(default_factory=dict)

    @property
    def searched(self) -> bool:
        """Whether it is of the search itself, not of the second phase."""
        return self.role in ("search", "select", "final")

    @property
    def mean(self) -> float | None:
        """The plain mean of the reported metrics."""
        return sum(self.tasks.values()) / len(self.tasks) if self.tasks else None


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Trials of the search whose values compare, the best first: the incumbents, where any were chosen; else those
    scored on all documents; else all. Failed ones are left out."""
    finished = [trial for trial in trials if trial.value is not None and trial.searched]
    if incumbents := [trial for trial in finished if trial.incumbent]:
        return incumbents[::-1]
    whole = [trial for trial in finished if trial.whole]
    return sorted(whole or finished, key=lambda trial: (-(trial.value or 0.0), trial.number))


def best(trials: Sequence[Trial]) -> Trial | None:
    """The best of those trained, where there are any; else the best of the search.

    That is the last incumbent; where none was chosen, the trial of highest value, the earliest of equals. Of trials
    scored on some documents only, none is chosen where there are others: luck in its documents would choose it.
    None if all failed.
    """
    trained = [trial for trial in trials if trial.role == "trained" and trial.value is not None]
    return max(trained, key=lambda trial: trial.value or 0.0) if trained else next(iter(ranked(trials)), None)


def elites(trials: Sequence[Trial], top: float, least: int) -> list[Trial]:
    """The best of the search, each recipe once: a share of those whose values compare, and at least so many."""
    pool = list({trial.recipe: trial for trial in reversed(ranked(trials))}.values())[::-1]
    return pool[: max(math.ceil(top * len(pool)), least)]


# --- the log -----------------------------------------------------------------------------------------------


class Journal:
    """The log of finished trials: an Optuna study in a file or a database. Each trial is written in one operation.

    Which of them, STUDY/experiment.yaml's `storage` says; without that file it is the file. The attributes of an
    Optuna trial hold the whole `Trial`; its parameters, values and state are there for Optuna's own tools. Trials
    that others put into the Optuna study are not of the log.

    Args:
        coordinates: of all genomes.
        objectives: tasks whose climbed metrics are the Optuna study's values; () for one value, the trial's.

    Raises:
        StudyError: the log is damaged before its last line, or the database does not let us in.
    """

    def __init__(self, folder: Path, coordinates: Sequence[Coordinate], objectives: Sequence[str] = ()) -> None:
        self._objectives = tuple(objectives)
        self._distributions = {c.name: distribution(c) for c in coordinates}
        self._log = _log(folder)
        others = [name for name in (JOURNAL, DATABASE, STORAGE_NAME) if (folder / name).is_file()]
        if others and not self._log.begun:
            raise StudyError(
                f"{folder}: its log is in {others[0]}, not where `storage` in {EXPERIMENT} says now; put that back"
            )
        self._study = self._log.open(self._objectives)

    def add(self, trial: Trial) -> None:
        """Appends a trial.

        Raises:
            StudyError: the disk or the database does not take it.
        """
        values = None
        if trial.value is not None:
            values = [trial.climbed[task] for task in self._objectives] or [trial.value]
        frozen = optuna.create_trial(
            state=TrialState.FAIL if trial.value is None else TrialState.COMPLETE,
            params=trial.genome,
            distributions={name: self._distributions[name] for name in trial.genome},
            values=values,
            user_attrs=asdict(trial),
        )
        with self._log.writing(), _undamaged(str(self._log.mark)):
            self._study.add_trial(frozen)

    def trials(self) -> list[Trial]:
        """All trials, in order.

        Raises:
            StudyError: the log is damaged, or the database does not answer.
        """
        return self._log.trials(self._study)


def exists(folder: Path) -> bool:
    """Whether a study has a log, which may be empty. Connects to no database.

    Raises:
        ConfigError: the study's experiment cannot be read.
    """
    return _log(folder).begun


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a study, without writing anything: the study may be running.

    Raises:
        StudyError: there is no log, it is damaged, or the database does not answer.
        ConfigError: the study's experiment cannot be read.
    """
    log = _log(folder)
    if not log.begun:
        raise StudyError(f"{folder} is no study: it has no {log.mark.name}")
    return log.trials(None)


def check_storage(storage: str) -> None:
    """Connects to the database that an experiment's `storage` names, to see before a search that it is there.

    Raises:
        StudyError: it is not, or does not let us in.
    """
    if storage not in (_FILE, _OWN):
        _Database(Path(), storage).check()


def _log(folder: Path) -> _File | _Database:
    """Where a study's log is, written or not."""
    path = folder / EXPERIMENT
    storage = str(catalog.read_yaml(path).get("storage", _FILE)) if path.is_file() else _FILE
    return _File(folder) if storage == _FILE else _Database(folder, config.resolve_storage(storage, folder))


class _File:
    """A log in STUDY/journal.log.

    Attributes:
        mark: the file that is there once the log is begun.
    """

    def __init__(self, folder: Path) -> None:
        self.mark = folder / JOURNAL

    @property
    def begun(self) -> bool:
        return self.mark.is_file()

    def open(self, objectives: Sequence[str]) -> optuna.Study:
        """The Optuna study, made if it is not there. Only the holder of the study's lock may call this."""
        _repair(self.mark)
        with self.writing(), _undamaged(self.mark), _not_collecting():
            return _open_study(self._storage(), _NAME, objectives)

    def trials(self, study: optuna.Study | None) -> list[Trial]:
        """Those of a study; None reads the file."""
        with _undamaged(self.mark), _not_collecting():
            if study is None:
                with self.mark.open("rb") as lines:
                    if not next(lines, b"").endswith(b"\n"):
                        return []  # killed before the first line was whole
                study = optuna.load_study(storage=self._storage(), study_name=_NAME)
            return _in_order(
                _record(frozen)
                for frozen in study.get_trials(deepcopy=False)
                if frozen.state.is_finished() and "recipe" in frozen.user_attrs
            )

    def writing(self) -> AbstractContextManager[None]:
        """Turns a disk that does not take a trial into one clear line."""
        return saving(self.mark)

    def _storage(self) -> JournalStorage:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return JournalStorage(JournalFileBackend(str(self.mark)))


class _Database:
    """A log in a database: STUDY/journal.db, another file, or a server.

    In one outside of STUDY the study has a name of its own, with a random part. STUDY/storage_name keeps it, which
    moves with the folder and is written when the study is in the database.

    Optuna writes a trial in one transaction, so there are no torn ones. It does so again if the connection breaks
    before the answer: a trial may be there twice, which is the same as once. Reading goes by the attributes alone:
    through Optuna, which reads each parameter with its distribution, it takes ten times as long.
    """

    def __init__(self, folder: Path, storage: str) -> None:
        self._inside = storage == _OWN
        self.mark = folder / (DATABASE if self._inside else STORAGE_NAME)
        self._storage = storage

    @property
    def begun(self) -> bool:
        return self.mark.is_file()

    def open(self, objectives: Sequence[str]) -> optuna.Study:
        """The Optuna study, made if the log is not begun."""
        name = self._name()
        if name and not self._inside:
            self._require(name)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        options: dict[str, Any] = {"pool_pre_ping": True}  # a candidate may take longer than a connection lives
        if self._file:
            options = {"connect_args": {"timeout": _PATIENCE}}
        url = self._url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        with self._answering(_OPENED):
            study = _open_study(RDBStorage(url, options), name or self._new_name(), objectives)
        if not self._inside and not name:
            with saving(self.mark):
                aside = self.mark.with_suffix(".tmp")
                aside.write_text(f"{study.study_name}\n", encoding="utf-8")
                aside.replace(self.mark)
        return study

    def trials(self, study: optuna.Study | None) -> list[Trial]:
        """All, read anew."""
        name = self._name()
        with self._answering(_OPENED), self._connection() as connection:
            number = self._find(connection, name)
            if number is None and self._inside:
                return []  # killed before the study was in it
            if number is None:
                raise self._lacks(name)
            with _undamaged(self._where):
                return _in_order(_records(connection, number))

    def writing(self) -> AbstractContextManager[None]:
        """Turns a database that does not take a trial into one clear line."""
        return self._answering("cannot be written: {}; what is finished is kept: go on with `evomerge resume`")

    def check(self) -> None:
        """Raises StudyError if the database cannot be opened. Writes nothing."""
        if self._file and not self._file.parent.is_dir():
            raise StudyError(f"storage: there is no folder {self._file.parent}")
        if self._file and not self._file.exists():
            return
        with self._answering(_OPENED), self._connection() as connection:
            self._find(connection, "")

    @cached_property
    def _url(self) -> sqlalchemy.URL:
        if self._inside:
            return sqlalchemy.URL.create("sqlite", database=str(self.mark))
        return _url(self._storage)

    @property
    def _file(self) -> Path | None:
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
            return _NAME
        return self.mark.read_text(encoding="utf-8").strip() if self.begun else ""

    def _new_name(self) -> str:
        return f"{self.mark.absolute().parent.name[:100]}-{uuid.uuid4().hex[:12]}"

    def _require(self, name: str) -> None:
        with self._answering(_OPENED), self._connection() as connection:
            if self._find(connection, name) is None:
                raise self._lacks(name)

    def _lacks(self, name: str) -> StudyError:
        return StudyError(
            f"{self._where} has no study {name}: put `storage` in {self.mark.with_name(EXPERIMENT)} right, "
            f"or remove {self.mark} to begin a new log"
        )

    @contextmanager
    def _connection(self) -> Iterator[sqlalchemy.Connection]:
        """A connection that makes nothing."""
        if self._file and not self._file.is_file():
            raise StudyError(f"there is no database {self._file}; restore it, or start a new study")
        engine = sqlalchemy.create_engine(self._url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            yield connection

    def _find(self, connection: sqlalchemy.Connection, name: str) -> int | None:
        """The number of a study in the database, by its name."""
        if not sqlalchemy.inspect(connection).has_table(_STUDIES.name):
            return None
        query = sqlalchemy.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name)
        number: int | None = connection.execute(query).scalar_one_or_none()
        return number

    @contextmanager
    def _answering(self, sentence: str) -> Iterator[None]:
        """Turns what database, driver and Optuna raise into one line without a password.

        Raises:
            StudyError: for any of them.
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


def _open_study(storage: BaseStorage, name: str, objectives: Sequence[str]) -> optuna.Study:
    """An Optuna study, made if it is not there, with its objectives' names."""
    with alone():
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["maximize"] * max(len(objectives), 1),
            load_if_exists=True,
        )
        if objectives and study.metric_names != list(objectives):
            study.set_metric_names(list(objectives))
    return study


def _record(frozen: FrozenTrial) -> dict[str, Any]:
    """The attributes of an Optuna trial. Older journals have genome and value only where Optuna keeps them."""
    if "genome" in frozen.user_attrs:
        return frozen.user_attrs
    value = frozen.value if frozen.state == TrialState.COMPLETE else None
    return {**frozen.user_attrs, "genome": dict(frozen.params), "value": value}


def _records(connection: sqlalchemy.Connection, study: int) -> Iterator[dict[str, Any]]:
    """The attributes of our finished trials in a database, trial by trial."""
    state = sqlalchemy.cast(_TRIALS.c.state, sqlalchemy.String(8))  # elsewhere an enumeration
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


def _in_order(records: Iterable[dict[str, Any]]) -> list[Trial]:
    """The trials of a log, whose numbers must be their places.

    Raises:
        ValueError: one is missing, or two differ that have one number.
        TypeError: one lacks a field, or has another.
    """
    found: dict[int, Trial] = {}
    for record in records:
        trial = Trial(**{**record, "blocks": tuple(record.get("blocks", ()))})
        if found.setdefault(trial.number, trial) != trial:
            raise ValueError(f"there are two trials {trial.number}: two copies of the study have been run")
    if list(found) != list(range(len(found))):
        raise ValueError("a trial is missing")
    return list(found.values())


def _url(storage: str) -> sqlalchemy.URL:
    """The address in a `storage`, its environment variables filled in.

    Raises:
        StudyError: a variable is not set, or it is no URL.
    """
    if storage.startswith(_SQLITE):
        return sqlalchemy.URL.create("sqlite", database=_filled(storage.removeprefix(_SQLITE), str))
    place, mark, query = storage.partition("?")
    user, at, host = place.rpartition("@")
    try:
        url = sqlalchemy.make_url(_filled(user, _quoted) + at + _filled(host, str) + mark + _filled(query, _quoted))
    except (ValueError, SQLAlchemyError):  # whose texts may show a part of the password
        raise StudyError("storage: is no URL of a database; write postgresql://USER@HOST/NAME") from None
    # Which driver is meant without a name depends on SQLAlchemy's version.
    return url.set(drivername="postgresql+psycopg2") if url.drivername == "postgresql" else url


def _filled(text: str, write: Callable[[str], str]) -> str:
    """A text with its ${NAME} replaced by what is written for their values."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise StudyError(f"storage: the environment variable {match[1]} is not set")
        return write(os.environ[match[1]])

    return re.sub(r"\$\{(\w+)\}", value, text)


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


@contextmanager
def _not_collecting() -> Iterator[None]:
    """Leaves cyclic garbage alone: looking for it takes longer than reading a journal of many coordinates."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def _undamaged(where: Path | str) -> Iterator[None]:
    """Turns what Optuna raises for a log that it cannot read into one line. `where` is a journal's path."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) or type(error).__name__
        if isinstance(where, Path) and (line := _broken_line(where)):
            where = f"{where}: line {line}"
        raise StudyError(f"{where} is damaged ({reason}); restore it, or start a new study") from error


def _repair(path: Path) -> None:
    """Cuts a last line that a kill has torn, and removes the lock of the process that was killed.

    Only the holder of the study's lock may call this.
    """
    for leftover in path.parent.glob(f"{path.name}.lock*"):
        leftover.unlink(missing_ok=True)
    if not path.exists():
        return
    content = path.read_bytes()
    last = content[content.rfind(b"\n", 0, -1) + 1 :]
    if not (last.endswith(b"\n") and _is_json(last)):
        with path.open("r+b") as file:
            file.truncate(len(content) - len(last))


def _broken_line(path: Path) -> int | None:
    """The first line of a journal that is none, counted from 1."""
    with path.open("rb") as lines:
        return next((number for number, line in enumerate(lines, start=1) if not _is_json(line)), None)


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


# --- per-document results ----------------------------------------------------------------------------------


def write_score(folder: Path, recipe: str, fitness: str, score: Score) -> None:
    """Keeps a recipe's score with its per-document results: STUDY/documents/RECIPE.npz.

    Raises:
        StudyError: the disk does not take it.
    """
    arrays: dict[str, np.ndarray] = {}
    tasks = {}
    for position, (task, result) in enumerate(score.report.tasks.items()):
        arrays[f"{position}/documents"] = result.documents
        for metric, values in result.metrics.items():
            arrays[f"{position}/metrics/{metric}"] = values
        tasks[task] = {"aggregates": result.aggregates, "metrics": list(result.metrics)}
    rest = {
        "fitness": fitness,
        "groups": score.groups,
        "measured": asdict(score.measured),
        "tasks": tasks,
        "report": {k: v for k, v in asdict(replace(score.report, tasks={})).items() if k != "tasks"},
        "seconds": score.seconds,
        "weights_sha256": score.weights_sha256,
    }
    arrays["about"] = np.frombuffer(json.dumps(rest).encode(), dtype=np.uint8)
    path = _score_path(folder, recipe)
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        with aside.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        aside.replace(path)


def read_score(folder: Path, recipe: str, fitness: str) -> Score | None:
    """The kept score of a recipe under a fitness; None if there is none, or it is damaged: it is made again."""
    path = _score_path(folder, recipe)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            rest = json.loads(stored["about"].tobytes())
            if rest["fitness"] != fitness:
                return None
            tasks = {
                task: TaskScore(
                    documents=stored[f"{position}/documents"],
                    metrics={m: stored[f"{position}/metrics/{m}"] for m in about["metrics"]},
                    aggregates=about["aggregates"],
                )
                for position, (task, about) in enumerate(rest["tasks"].items())
            }
    except Exception:  # whatever a damaged zip file raises
        return None
    report = Report(tasks=tasks, **rest["report"])
    groups = {entry: tuple(tasks) for entry, tasks in rest["groups"].items()}
    return Score(Measured(**rest["measured"]), report, groups, rest["seconds"], rest["weights_sha256"])


def read_truncated(folder: Path, recipe: str, fitness: str) -> dict[str, int] | None:
    """Task -> truncated answers, of a recipe's kept score. None where `read_score` gives None."""
    try:
        with np.load(_score_path(folder, recipe), allow_pickle=False) as stored:
            rest = json.loads(stored["about"].tobytes())
    except Exception:  # whatever a missing or damaged zip file raises
        return None
    return dict(rest["report"]["truncated"]) if rest["fitness"] == fitness else None


def _score_path(folder: Path, recipe: str) -> Path:
    return folder / DOCUMENTS / f"{recipe}.npz"


# --- files -------------------------------------------------------------------------------------------------


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turns a disk that does not take a file into one clear line.

    Raises:
        StudyError: for any OSError inside, and for safetensors' own.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = isinstance(error, SafetensorError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        cure = "free some space and go on (a study: `evomerge resume`)" if full else "choose another place"
        reason = str(error) if isinstance(error, SafetensorError) else error.strerror or error
        raise StudyError(f"{path} cannot be written: {reason}; what is finished is kept: {cure}") from error


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a study for this process alone; a killed process holds nothing.

    Raises:
        StudyError: another process runs the study.
    """
    with saving(folder / ".lock"):
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StudyError(f"{folder} is being run by another process; wait for it or stop it") from error
        yield
    finally:
        os.close(handle)
