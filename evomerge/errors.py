"""The errors that evomerge raises for people, each with the exit code the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class EvomergeError(Exception):
    """An error that a person can put right. Its text says what is wrong, where, and what to do."""

    exit_code = 2


class ConfigError(EvomergeError):
    """A YAML file says something that cannot be.

    Attributes:
        where: the file, or the key in it.
        faults: all faults that were found, one line each.
    """

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        self.where = where
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{where}: {fault}" if where else fault for fault in self.faults))

    @classmethod
    def join(cls, errors: Sequence[ConfigError]) -> ConfigError:
        """One error with the faults of several files."""
        return cls("", [line for error in errors for line in str(error).splitlines()])


class CheckpointError(EvomergeError):
    """A checkpoint is missing, damaged, or does not fit the others."""


class StudyError(EvomergeError):
    """A study folder cannot be opened, continued or written."""


class CandidateError(EvomergeError):
    """One candidate could not be built or scored. Its study goes on without it."""


class WorkerError(EvomergeError):
    """Workers cannot be started, or keep dying."""


def suggest(wrong: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known name, then all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; the exception's kind if it has no message."""
    return _first(error) or type(error).__name__


def named_first_line(error: BaseException) -> str:
    """An exception's kind and the first line of its message."""
    return _named(error, _first(error))


def one_line(error: BaseException) -> str:
    """An exception's kind and its whole message, with all lines joined to one and cut to 300 characters."""
    return _named(error, " ".join(str(error).split())[:300])


def _first(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _named(error: BaseException, message: str) -> str:
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
