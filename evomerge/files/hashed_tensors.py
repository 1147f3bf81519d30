"""Tensors on disk, written aside and renamed: a killed process leaves no half of a file, and of several that write
the same one the last wins."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evomerge.errors import StudyError
from evomerge.files import hashing

HASH = "sha256"  # the metadata's key for the hash of the tensors


_TRIES = 5  # another process may put its file in place between the reading of metadata and tensors


def write(path: Path, arrays: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Writes tensors, with their hash, as a safetensors file.

    Args:
        about: goes to the file's metadata.

    Raises:
        StudyError: the disk does not take it.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    whole = {name: tensor.detach().to("cpu").contiguous() for name, tensor in arrays.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, aside, metadata={**(about or {}), HASH: hashing.sha256(whole)})
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StudyError(f"{path} cannot be written: {reason}; free some space, or choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors of a file that `write` wrote, on the CPU, and its metadata; None if there is none, or it is
    damaged."""
    for _ in range(_TRIES):
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = dict(file.metadata() or {})
        except (OSError, SafetensorError):
            continue
        if about.get(HASH) == hashing.sha256(found):
            return found, about
    return None


_HASH = "sha256"


def read_arrays(path: Path, wanted: set[str]) -> Mapping[str, torch.Tensor] | None:
    """The stored arrays as views of the file; None if there are none, or they are damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in wanted}
            intact = (file.metadata() or {}).get(_HASH) == hashing.sha256(stored)
    except (SafetensorError, OSError):
        return None
    return stored if intact else None


def write_arrays(path: Path, arrays: Mapping[str, torch.Tensor]) -> None:
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(arrays), aside, metadata={_HASH: hashing.sha256(arrays)})
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StudyError(f"{path} cannot be written: {reason}; the tables of a study go there") from error
