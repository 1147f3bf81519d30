"""Opens checkpoints: safetensors only, memory-mapped, sharded or not; and checks that they fit together.

Tensors are views of the mapped files: opening reads the headers alone, and all workers of a host share one
copy in the page cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from evomerge import tensors
from evomerge.errors import CheckpointError
from evomerge.recipe import Source

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


def locate(source: Source, where: str) -> Path:
    """The local folder of a source; a Hub id is fetched (or found in the Hub's cache).

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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{where}: {source} is no folder here and cannot be fetched from the Hub ({reason}); "
            "check the name, or download it first and give its folder"
        ) from error


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint, by name, as read-only views of its files.

    Args:
        where: what names the checkpoint in a person's file, for messages.
        sha256: the hash of the weights if it is known already; else it is computed when asked for.

    Raises:
        CheckpointError: the folder holds no safetensors, or a file is missing or damaged.
    """

    def __init__(self, folder: Path, where: str, sha256: str | None = None) -> None:
        self.folder = folder
        self.where = where
        self._sha256 = sha256
        self._files: dict[str, Any] = {}
        self._home: dict[str, str] = {}
        self._views: dict[str, torch.Tensor] = {}
        for name in _shards(folder, where):
            path = folder / name
            if not path.is_file():
                raise CheckpointError(f"{where}: {path} is missing; copy the checkpoint again")
            try:
                handle = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{where}: {path} is damaged ({error}); copy it again") from error
            self._files[name] = handle
            self._home.update(dict.fromkeys(handle.keys(), name))  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._views:
            self._views[name] = self._files[self._home[name]].get_tensor(name)
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._home))

    def __len__(self) -> int:
        return len(self._home)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape, from the headers."""
        return {name: tuple(self._files[home].get_slice(name).get_shape()) for name, home in self._home.items()}

    @property
    def sha256(self) -> str:
        """The hash of the weights, see `tensors.sha256`. Reads every byte once."""
        if self._sha256 is None:
            self._sha256 = tensors.sha256(self)
        return self._sha256

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the elements have."""
        sizes: dict[torch.dtype, int] = {}
        for name in self:
            tensor = self[name]
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
        if not sizes:
            raise CheckpointError(f"{self.where}: {self.folder} holds no tensors; copy it again")
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self[name].nbytes for name in self)


def _shards(folder: Path, where: str) -> list[str]:
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            return sorted({str(name) for name in index["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{where}: {folder / INDEX} is damaged; copy it again") from error
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{where}: {folder} is a LoRA adapter; merge it into its base first (peft: merge_and_unload) "
            "and give that folder"
        )
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
        raise CheckpointError(
            f"{where}: {folder} has pickled weights only, and evomerge reads none; save it as safetensors "
            "(transformers: save_pretrained)"
        )
    raise CheckpointError(f"{where}: {folder} has no {SINGLE}; is it a model folder?")


def check_fit(base: Checkpoint, experts: Mapping[str, Checkpoint], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Checks that every checkpoint has the tensors that the live model wants, in its shapes.

    Args:
        wanted: the live model's parameters, name -> shape.

    Raises:
        CheckpointError: naming the checkpoints and the tensors, all of them at once.
    """
    faults = []
    for checkpoint in (base, *experts.values()):
        missing = [name for name in wanted if name not in checkpoint]
        if missing:
            faults.append(
                f"{checkpoint.where}: {checkpoint.folder} lacks {_some(missing)}; all models must be fine-tuned "
                "from one base and saved under the same tensor names"
            )
        for name, shape in wanted.items():
            if name in checkpoint and checkpoint.shapes[name] != tuple(shape):
                faults.append(
                    f"{checkpoint.where}: {name} has shape {list(checkpoint.shapes[name])} in {checkpoint.folder}, "
                    f"but the base's is {list(shape)}; merge models of one architecture and vocabulary"
                )
                break
            if name in checkpoint and not checkpoint[name].is_floating_point():
                faults.append(
                    f"{checkpoint.where}: {name} is {checkpoint[name].dtype} in {checkpoint.folder}: a quantized "
                    "checkpoint; give the float16, bfloat16 or float32 one"
                )
                break
    if faults:
        raise CheckpointError("\n".join(faults))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more tensors" if len(names) > 3 else "")
