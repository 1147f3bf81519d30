"""The sha256 of files and of named tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from evomerge.errors import ConfigError


def sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """The sha256 of named tensors: of each one's name, dtype, shape and bytes, in the order of their names.

    Equal for a live model, its exported folder and that folder loaded again, however it is sharded.
    """

    def one(name: str) -> bytes:
        tensor = tensors[name].detach()
        data = tensor.to("cpu").contiguous().view(-1).view(torch.uint8).numpy()
        header = f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|"
        digest = hashlib.sha256(header.encode())
        digest.update(data.data)
        return digest.digest()

    # hashlib lets other threads run while it hashes.
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(one, sorted(tensors))
        return hashlib.sha256(b"".join(digests)).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
