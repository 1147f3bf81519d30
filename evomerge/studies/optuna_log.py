"""What logs in files and in databases share: the Optuna study, the order of its trials, and its errors."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from evomerge.errors import StudyError
from evomerge.searching.samplers._alone import alone
from evomerge.studies.trials import EarlierVersionError, Trial

STUDY_NAME = "evomerge"  # the name of the Optuna study in a log that is in the study's folder


def open_study(storage: BaseStorage, name: str, objectives: Sequence[str]) -> optuna.Study:
    """The Optuna study of a name, made if it is not there. All its values are maximized.

    Args:
        objectives: the names of its values; () for one value without a name.
    """
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


def in_order(records: Iterable[dict[str, Any]]) -> list[Trial]:
    """The trials of a log, each once. They come in their order, and the number of each is its place.

    Raises:
        ValueError: a trial is missing, or two different trials have the same number.
        TypeError: a trial lacks a field, or has one that is unknown.
        EarlierVersionError: an earlier version of evomerge wrote the log.
    """
    by_number: dict[int, Trial] = {}
    for record in records:
        trial = Trial.of_record(record)
        if by_number.setdefault(trial.number, trial) != trial:
            raise ValueError(f"there are two trials {trial.number}: two copies of the study have been run")
    if list(by_number) != list(range(len(by_number))):
        raise ValueError("a trial is missing")
    return list(by_number.values())


@contextmanager
def not_collecting_garbage() -> Iterator[None]:
    """Turns Python's cycle collector off: its searches take longer than reading a journal of many coordinates."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def undamaged(where: Path | str) -> Iterator[None]:
    """Turns what Optuna raises for a log that it cannot read into one line.

    Args:
        where: names the log in the message. For the path of a journal the message names the damaged line, too.

    Raises:
        StudyError: the log is damaged, or an earlier version wrote it.
    """
    try:
        yield
    except EarlierVersionError as error:
        raise StudyError(f"{where}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) or type(error).__name__
        if isinstance(where, Path) and (line := _broken_line(where)):
            where = f"{where}: line {line}"
        raise StudyError(f"{where} is damaged ({reason}); restore it, or start a new study") from error


def _broken_line(path: Path) -> int | None:
    """The number of the first line of a journal that is no JSON mapping, counted from 1; None if all are."""
    with path.open("rb") as lines:
        return next((number for number, line in enumerate(lines, start=1) if not is_json(line)), None)


def is_json(line: bytes) -> bool:
    """Whether a line of a journal is a mapping in JSON."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
