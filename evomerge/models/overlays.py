"""Checkpoints of which some tensors are made when they are read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evomerge.errors import CheckpointError
from evomerge.files.writing import replacing, saving
from evomerge.models.checkpoints import CODES
from evomerge.models.fitting import is_finite

_ADVICE = "it holds converted weights"  # where the disk does not take an overlay


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be made, of a dtype and shape that are known before."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


def is_overlay(path: Path, *, whole: bool) -> bool:
    """Whether an overlay is there and sound.

    Args:
        whole: whether to read every byte and compare with its checksum; else header and length count alone.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            kept = (opened.metadata() or {}).get("sha256")
        if not whole:
            return True
        with path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            return hashlib.file_digest(file, "sha256").hexdigest() == kept
    except (SafetensorError, OSError):
        return False


def write_overlay(path: Path, made: Mapping[str, LazyTensor], where: str) -> None:
    """Writes an overlay one tensor after the other, aside, and renames it when it is complete.

    Raises:
        CheckpointError: a tensor comes out with values that are not finite.
        StudyError: the folder cannot be written to.
    """
    # Wide elements first, so that each tensor is aligned.
    names = sorted(made, key=lambda name: (-made[name].dtype.itemsize, name))
    codes = {getattr(torch, dtype): code for code, dtype in CODES.items()}
    header: dict[str, Any] = {"__metadata__": {"sha256": "0" * 64}}
    end = 0
    for name in names:
        dtype, shape = made[name].dtype, made[name].shape
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with saving(path, _ADVICE), replacing(path) as aside, aside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = made[name].make()
            if not is_finite(tensor):
                raise CheckpointError(f"{where}: {name} is not finite once it is made for the base's model")
            data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.seek(8 + text.index(b"0" * 64))
        file.write(digest.hexdigest().encode())


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds a file's lock, so that of several workers one makes it."""
    with saving(path, _ADVICE):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
