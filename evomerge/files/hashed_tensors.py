"""Safetensors files whose metadata hold the hash of their tensors. Damage is found when they are read.

They are written whole: see `files.writing.replacing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evomerge.files import hashing, writing

HASH = "sha256"  # the metadata's key for the hash of the tensors

_TRIES = 5  # another process may put its file in place between the reading of metadata and tensors


def write(
    path: Path,
    arrays: Mapping[str, Tensor],
    about: Mapping[str, str] | None = None,
    advice: str = "free some space, or choose another place",
) -> None:
    """Writes tensors with their hash.

    Args:
        about: further entries of the file's metadata.
        advice: the end of the error's message.

    Raises:
        StudyError: the disk does not take the file.
    """
    on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in arrays.items()}
    with writing.saving(path, advice), writing.replacing(path) as aside:
        save_file(on_cpu, aside, metadata={**(about or {}), HASH: hashing.sha256(on_cpu)})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors of a file that `write` wrote, on the CPU as views of the file, and the file's metadata.

    Returns:
        None if there is no file, or it is damaged.
    """
    for _ in range(_TRIES):
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = dict(file.metadata() or {})
        except (OSError, SafetensorError):
            continue
        if about.get(HASH) == hashing.sha256(tensors):
            return tensors, about
    return None
