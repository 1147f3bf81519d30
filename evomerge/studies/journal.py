"""The log of finished trials: an Optuna study in the study's folder or in a database."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from evomerge.errors import StudyError
from evomerge.files import yaml
from evomerge.files.writing import saving
from evomerge.searching.samplers._optuna import distribution
from evomerge.searching.spaces.genes import Coordinate
from evomerge.studies.database import Database
from evomerge.studies.folder import DATABASE, EXPERIMENT, JOURNAL, STORAGE_NAME
from evomerge.studies.optuna_log import (
    STUDY_NAME,
    in_order,
    is_json,
    not_collecting_garbage,
    open_study,
    undamaged,
)
from evomerge.studies.storage import IN_FILE, IN_SQLITE, resolve_storage
from evomerge.studies.trials import Trial


class Journal:
    """The log of finished trials: an Optuna study in a file or a database. Each trial is written in one operation.

    The `storage` in STUDY/experiment.yaml says where it is; without that file it is STUDY/journal.log. The
    attributes of an Optuna trial hold the whole `trials.Trial`; its parameters, values and state are there for
    Optuna's own tools. Trials that others put into the Optuna study do not belong to the log.

    Args:
        folder: the study's folder.
        coordinates: the coordinates of all genomes.
        objectives: the tasks whose climbed metrics are an Optuna trial's values; () for one value, the fitness.

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
        """Appends a trial to the log.

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
            user_attrs=trial.record(),
        )
        with self._log.writing(), undamaged(str(self._log.mark)):
            self._study.add_trial(frozen)

    def trials(self) -> list[Trial]:
        """All trials, in order.

        Raises:
            StudyError: the log is damaged, or the database does not answer.
        """
        return self._log.trials(self._study)


def exists(folder: Path) -> bool:
    """Whether a study has a log, which may be empty. No database is asked.

    Raises:
        ConfigError: the study's experiment cannot be read.
    """
    return _log(folder).begun


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a study. Nothing is written, so the study may be running.

    Raises:
        StudyError: there is no log, it is damaged, or the database does not answer.
        ConfigError: the study's experiment cannot be read.
    """
    log = _log(folder)
    if not log.begun:
        raise StudyError(f"{folder} is no study: it has no {log.mark.name}")
    return log.trials(None)


def check_storage(storage: str) -> None:
    """Checks, before a search, that the database is there which an experiment's `storage` names.

    Raises:
        StudyError: it is not there, or does not let us in.
    """
    if storage not in (IN_FILE, IN_SQLITE):
        Database(Path(), storage).check()


def _log(folder: Path) -> _File | Database:
    """The log of a study, begun or not, where the study's `storage` says."""
    path = folder / EXPERIMENT
    storage = str(yaml.read_yaml(path).get("storage", IN_FILE)) if path.is_file() else IN_FILE
    return _File(folder) if storage == IN_FILE else Database(folder, resolve_storage(storage, folder))


class _File:
    """A log in the file STUDY/journal.log. `Database` has the same methods.

    Attributes:
        mark: the path of that file, which exists once the log is begun.
    """

    def __init__(self, folder: Path) -> None:
        self.mark = folder / JOURNAL

    @property
    def begun(self) -> bool:
        """Whether the log exists; it may be empty."""
        return self.mark.is_file()

    def open(self, objectives: Sequence[str]) -> optuna.Study:
        """The Optuna study, made if it is not there. Only the holder of the study's lock may call this."""
        _repair(self.mark)
        with self.writing(), undamaged(self.mark), not_collecting_garbage():
            return open_study(self._storage(), STUDY_NAME, objectives)

    def trials(self, study: optuna.Study | None) -> list[Trial]:
        """All trials in their order.

        Args:
            study: the Optuna study that is open; None reads the file.

        Raises:
            StudyError: the log is damaged.
        """
        with undamaged(self.mark), not_collecting_garbage():
            if study is None:
                with self.mark.open("rb") as lines:
                    if not next(lines, b"").endswith(b"\n"):
                        return []  # the process was killed before the first line was whole
                study = optuna.load_study(storage=self._storage(), study_name=STUDY_NAME)
            return in_order(
                frozen.user_attrs
                for frozen in study.get_trials(deepcopy=False)
                if frozen.state.is_finished() and "recipe" in frozen.user_attrs
            )

    def writing(self) -> AbstractContextManager[None]:
        """Turns the error of a disk that does not take a trial into one clear line."""
        return saving(self.mark)

    def _storage(self) -> JournalStorage:
        """Optuna's storage for the file."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return JournalStorage(JournalFileBackend(str(self.mark)))


def _repair(path: Path) -> None:
    """Cuts off a last line that a kill has torn, and removes Optuna's lock of the killed process.

    Only the holder of the study's lock may call this.
    """
    for leftover in path.parent.glob(f"{path.name}.lock*"):
        leftover.unlink(missing_ok=True)
    if not path.exists():
        return
    content = path.read_bytes()
    last = content[content.rfind(b"\n", 0, -1) + 1 :]
    if not (last.endswith(b"\n") and is_json(last)):
        with path.open("r+b") as file:
            file.truncate(len(content) - len(last))
