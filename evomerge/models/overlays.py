"""Overlays: safetensors files whose tensors take the place of a checkpoint's, and are made once."""

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
    """A tensor that is not made yet, but whose dtype and shape are known."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


def is_overlay(path: Path, *, whole: bool) -> bool:
    """Whether there is a sound overlay at a path.

    Args:
        whole: whether to read every byte and compare it with the checksum. Else only header and length are checked.
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
    """Makes an overlay's tensors one after the other, and writes each before the next is made.

    The file is whole or not there, see `files.writing.replacing`.

    Args:
        where: what names the model in a person's file, for messages.

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
    """Holds the lock of an overlay, so that only one of several workers makes it."""
    with saving(path, _ADVICE):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
