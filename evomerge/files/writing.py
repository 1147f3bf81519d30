"""Writing whole: aside and renamed, one clear line where a disk does not take it, and a study's lock."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from evomerge.errors import StudyError

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
