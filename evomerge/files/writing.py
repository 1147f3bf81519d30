"""Files written whole: aside and renamed, with one clear line where a disk takes none; and the lock of a study."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from evomerge.errors import StudyError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def saving(path: Path, advice: str | None = None) -> Iterator[None]:
    """Turns the error of a disk that does not take a file into one clear line.

    Args:
        advice: the end of the message. None says that finished work is kept, and what to do about the error.

    Raises:
        StudyError: for any OSError or SafetensorError inside.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = isinstance(error, SafetensorError) or error.errno in _FULL
        cure = "free some space and go on (a study: `evomerge resume`)" if full else "choose another place"
        reason = getattr(error, "strerror", None) or error
        ending = advice or f"what is finished is kept: {cure}"
        raise StudyError(f"{path} cannot be written: {reason}; {ending}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a new hidden file beside `path`, and renames that file to `path` at the end of the block.

    Readers see the old file or the whole new one. Of several writers the last one wins. If the block raises, the
    hidden file is removed and `path` stays as it was. The hidden file of a killed process stays behind and disturbs
    nothing, because no two writers share a name. The parent folder is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        yield aside
        aside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as UTF-8, whole or not at all.

    Raises:
        StudyError: the disk does not take it.
    """
    with saving(path), replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def folder_aside(folder: Path) -> Path:
    """The hidden path beside `folder` under which it is filled. What a killed process left there is removed.

    Only one process at a time may fill a folder: unlike files, which are small, all writers share this path.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    return aside


def refuse_existing(output: Path, message: str | None = None) -> None:
    """Refuses to write to a path where there is something already. A folder without content is free.

    Args:
        message: the error's text. None says that the path exists already.

    Raises:
        StudyError: `output` is a file, or a folder with content.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StudyError(message or f"{output} exists already; give another folder, or remove it first")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a study for this process alone. The lock of a killed process ends with it.

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
