"""The sha256 of files, of plain values and of named tensors, as 64 hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import ConfigError

if TYPE_CHECKING:
    import torch


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error


def digest_of_json(value: Any, **style: Any) -> str:
    """The sha256 of a value's JSON with sorted keys.

    Args:
        style: further arguments of `json.dumps`. Those of a caller must never change, for hashes are kept on disk.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, **style).encode()).hexdigest()


def sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """The sha256 of named tensors: of each tensor's name, dtype, shape and bytes, in the order of the names.

    It is equal for a live model, its exported folder and that folder loaded again, however it is sharded.
    """
    # hashlib lets other threads run while it hashes.
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(lambda name: _tensor_digest(name, tensors[name]), sorted(tensors))
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _tensor_digest(name: str, tensor: torch.Tensor) -> bytes:
    """The sha256 of one tensor, 32 bytes."""
    import torch  # not at the top, so that commands that read no model start without torch

    data = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy()
    header = f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|"
    digest = hashlib.sha256(header.encode())
    digest.update(data.data)
    return digest.digest()
