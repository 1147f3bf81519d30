"""Opens checkpoints: safetensors only, memory-mapped, sharded or not.

Tensors are views of the mapped files. Opening reads the headers alone, and all workers of a host share one copy in
the page cache. Tensors that had to be made (see `models.family`) lie in an overlay, a safetensors file
whose tensors cover those of the folder.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from evomerge.errors import CheckpointError, first_line
from evomerge.files import hashing
from evomerge.models.source import Source
from evomerge.models.tensor_names import some
from evomerge.models.weight_files import WeightFiles, find_weight_files

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]

# safetensors' codes of the dtypes that unquantized weights have -> torch's names
CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def locate(source: Source, where: str) -> Path:
    """The local folder of a source. A Hub id is fetched, or found in the Hub's cache.

    Args:
        where: what names the source in a person's file, for the message.

    Raises:
        CheckpointError: there is no such folder, or the Hub does not give it.
    """
    folder = Path(source.model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.model.count("/") != 1:
        raise CheckpointError(f"{where}: there is no model folder {source.model}; check the path")
    try:
        return Path(snapshot_download(source.model, revision=source.revision, allow_patterns=_HUB_FILES))
    except Exception as error:
        raise CheckpointError(
            f"{where}: {source} is no folder here and cannot be fetched from the Hub ({first_line(error)}); "
            "check the name, or download it first and give its folder"
        ) from error


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint, by name, as read-only views of its files.

    Args:
        where: what names the checkpoint in a person's file, for messages.
        sha256: the hash of the weights if it is known already. None computes it when it is asked for.
        single: the name of the folder's one file of weights. None takes those that transformers reads, see
            `models.weight_files`.

    Attributes:
        note: what people should know of the choice of files; None where there was none.

    Raises:
        CheckpointError: the folder holds no safetensors, or a file is missing or damaged.
    """

    def __init__(self, folder: Path, where: str, sha256: str | None = None, single: str | None = None) -> None:
        self.folder = folder
        self.where = where
        self._sha256 = sha256
        self._home: dict[str, tuple[Path, Any]] = {}  # tensor -> its file, and the handle that reads it
        self._views: dict[str, torch.Tensor] = {}
        files = find_weight_files(folder, where) if single is None else WeightFiles((single,))
        self.note = files.note
        held: dict[str, list[str]] = {}
        for name in files.names:
            handle = _open(folder / name, where)
            held[name] = list(handle.keys())
            self._home.update(dict.fromkeys(held[name], (folder / name, handle)))
        if (lacking := files.lacking(held)) is not None:
            name, lost = lacking
            raise CheckpointError(
                f"{where}: {folder / name} lacks {some(lost)}, which {folder / str(files.index)} says it holds; "
                "copy both again"
            )
        if not self._home:
            raise CheckpointError(f"{where}: {folder} holds no tensors; copy it again")

    def covered(self, overlay: Path, folder: Path, where: str, sha256: str) -> Checkpoint:
        """This checkpoint with an overlay's tensors over its own.

        Args:
            overlay: the overlay's file.
            folder, where, sha256: those of the model that results.
        """
        covered = Checkpoint(overlay.parent, where, sha256, overlay.name)
        covered.folder = folder
        covered._home = {**self._home, **covered._home}
        return covered

    def filled(self, base: Checkpoint, names: Iterable[str]) -> Checkpoint:
        """This checkpoint with a base's tensors of these names where it has none of its own."""
        missing = {name: base._home[name] for name in names if name not in self._home}
        if not missing:
            return self
        filled = copy.copy(self)
        filled.__dict__.pop("shapes", None)
        filled.__dict__.pop("dtypes", None)
        filled._views = {}
        filled._home = {**self._home, **missing}
        filled._sha256 = self.sha256
        return filled

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._views:
            self._views[name] = self._home[name][1].get_tensor(name)
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._home))

    def __len__(self) -> int:
        return len(self._home)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def file(self, name: str) -> Path:
        """The file that a tensor lies in."""
        return self._home[name][0]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape, from the headers."""
        return {name: tuple(handle.get_slice(name).get_shape()) for name, (_, handle) in self._home.items()}

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Each tensor's dtype, from the headers: torch's name, or safetensors' code where it is not in `CODES`."""
        codes = {name: handle.get_slice(name).get_dtype() for name, (_, handle) in self._home.items()}
        return {name: CODES.get(code, code) for name, code in codes.items()}

    @property
    def sha256(self) -> str:
        """The hash of the weights, see `hashing.sha256`. Reads every byte once."""
        if self._sha256 is None:
            self._sha256 = hashing.sha256(self)
        return self._sha256

    @cached_property
    def dtype(self) -> str:
        """The dtype of most elements, named as in `dtypes`."""
        sizes: dict[str, int] = {}
        for name, dtype in self.dtypes.items():
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(self.shapes[name])
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def nbytes(self) -> int:
        """The size of all tensors together, in bytes."""
        return sum(self[name].nbytes for name in self)


def _open(path: Path, where: str) -> Any:
    """safetensors' handle of a file, which reads tensors when they are asked for."""
    if not path.is_file():
        raise CheckpointError(f"{where}: {path} is missing; copy the checkpoint again")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{where}: {path} is damaged ({error}); copy it again") from error
