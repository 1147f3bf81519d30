"""What a study keeps on disk, and how it gets there whole.

STUDY/experiment.yaml   the experiment as run, complete in itself
STUDY/journal.log       finished trials, one line each, appended: an Optuna journal
STUDY/documents/        per-document results, one file a recipe
STUDY/answers/          what candidates answered, one file a recipe: see `scoring.answers`
STUDY/thresholds/       tables that merge methods look up
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from safetensors import SafetensorError

from evomerge.candidate import Score
from evomerge.errors import StudyError
from evomerge.fitness import Measured
from evomerge.scoring import Report, TaskScore
from evomerge.space import Coordinate, Genome

EXPERIMENT, JOURNAL, DOCUMENTS, TABLES = "experiment.yaml", "journal.log", "documents", "thresholds"
ANSWERS = "answers"
_NAME = "evomerge"  # of the Optuna study in the journal


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
    """

    number: int
    generation: int
    slot: int
    genome: Genome
    recipe: str
    fitness: str
    value: float | None
    tasks: dict[str, float]
    climbed: dict[str, float]
    seconds: dict[str, float]
    tokens: int = 0
    documents: int = 0
    truncated: int = 0
    elapsed: float = 0.0
    weights_sha256: str | None = None
    reason: str | None = None

    @property
    def mean(self) -> float | None:
        """The plain mean of the reported metrics."""
        return sum(self.tasks.values()) / len(self.tasks) if self.tasks else None


def best(trials: Sequence[Trial]) -> Trial | None:
    """The trial of highest value, the earliest of equals; None if all failed."""
    finished = [trial for trial in trials if trial.value is not None]
    return max(finished, key=lambda trial: (trial.value, -trial.number), default=None)


# --- the journal -------------------------------------------------------------------------------------------


class Journal:
    """The log of finished trials, an Optuna study in a journal file. Each trial is written in one operation.

    Raises:
        StudyError: the file is damaged before its last line.
    """

    def __init__(self, folder: Path, coordinates: Sequence[Coordinate]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self._path = folder / JOURNAL
        _repair(path)
        self._distributions: dict[str, Any] = {
            c.name: CategoricalDistribution(c.choices) if c.choices else FloatDistribution(c.low, c.high, log=c.log)
            for c in coordinates
        }
        with saving(path), _undamaged(path):
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name=_NAME,
                direction="maximize",
                load_if_exists=True,
            )

    def add(self, trial: Trial) -> None:
        """Appends a trial.

        Raises:
            StudyError: the disk does not take it.
        """
        record = asdict(trial)
        params, value = record.pop("genome"), record.pop("value")
        frozen = optuna.create_trial(
            state=TrialState.FAIL if value is None else TrialState.COMPLETE,
            params=params,
            distributions=self._distributions,
            value=value,
            user_attrs=record,
        )
        with saving(self._path):
            self._study.add_trial(frozen)

    def trials(self) -> list[Trial]:
        """All trials, in order."""
        return _thaw(self._study, self._path)


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a study, without writing anything: the study may be running.

    Raises:
        StudyError: there is no journal, or it is damaged.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise StudyError(f"{folder} is no study: it has no {JOURNAL}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if b"\n" not in path.read_bytes():
        return []  # killed before the first line was whole
    with _undamaged(path):
        study = optuna.load_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name=_NAME)
    return _thaw(study, path)


def _thaw(study: optuna.Study, path: Path) -> list[Trial]:
    """The trials of an Optuna study, whose numbers must be their places."""
    with _undamaged(path):
        trials = [
            Trial(
                **frozen.user_attrs,
                genome=dict(frozen.params),
                value=frozen.value if frozen.state == TrialState.COMPLETE else None,
            )
            for frozen in study.get_trials(deepcopy=False)
        ]
        if [trial.number for trial in trials] != list(range(len(trials))):
            raise ValueError("a line is missing")
    return trials


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Turns what Optuna raises for a journal that it cannot read into one line."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) or type(error).__name__
        raise StudyError(f"{path} is damaged ({reason}); restore the file, or start a new study") from error


def _repair(path: Path) -> None:
    """Cuts a last line that a kill has torn, and removes the lock of the process that was killed.

    Only the holder of the study's lock may call this.

    Raises:
        StudyError: another line is broken.
    """
    for leftover in path.parent.glob(f"{path.name}.lock*"):
        leftover.unlink(missing_ok=True)
    if not path.exists():
        return
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        whole = line.endswith(b"\n") and _is_json(line)
        if whole:
            continue
        if number < len(lines):
            raise StudyError(f"{path}: line {number} is damaged; restore the file, or start a new study")
        with path.open("r+b") as file:
            file.truncate(len(content) - len(line))


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
