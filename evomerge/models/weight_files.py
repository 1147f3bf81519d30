"""Which files of a model folder are its checkpoint: those that transformers' `from_pretrained` reads, in its order.

A folder may hold the files of several saves. transformers takes the file that `transformers_weights` in config.json
names, else model.safetensors, else the shards of model.safetensors.index.json. Of shards it reads every tensor,
whatever the index lists; where two shards have a tensor, the one whose name comes last counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from evomerge.errors import CheckpointError
from evomerge.files.json_mapping import read_mapping
from evomerge.models.tensor_names import some

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

_CONFIG, _NAMED = "config.json", "transformers_weights"  # the config's key that names the file of weights
_PARTS = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # transformers' distributed checkpoints
_TRAINING = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "scaler.pt"}


@dataclass(frozen=True)
class WeightFiles:
    """The files of a folder's checkpoint.

    Attributes:
        names: the files, in the order in which they are read. A later file's tensor covers an earlier one's.
        index: the file that lists the tensors; None where there is one file of weights.
        listed: file -> the tensors that the index says it holds.
        note: what people should know of the choice; None where the folder leaves none.
    """

    names: tuple[str, ...]
    index: str | None = None
    listed: Mapping[str, list[str]] = field(default_factory=dict)
    note: str | None = None

    def lacking(self, held: Mapping[str, list[str]]) -> tuple[str, list[str]] | None:
        """The first file with tensors that the index lists and no file holds, and these tensors; None without one.

        Args:
            held: file -> the tensors that it holds.
        """
        there = {tensor for tensors in held.values() for tensor in tensors}
        for name in self.names:
            if lost := sorted(set(self.listed.get(name, ())) - there):
                return name, lost
        return None


def find_weight_files(folder: Path, where: str) -> WeightFiles:
    """The files of a folder's checkpoint. Whether they are there and sound is not looked at.

    Args:
        where: what names the model in a person's file, for messages.

    Raises:
        CheckpointError: the folder holds no safetensors that transformers would read, or a file names another one
            that is not in the folder.
    """
    if parts := sorted(path.name for path in folder.glob("shard-*.safetensors") if _PARTS.fullmatch(path.name)):
        raise CheckpointError(
            f"{where}: {folder} is a distributed checkpoint ({parts[0]}), whose files hold parts of tensors; load "
            "it with transformers and save it again (save_pretrained)"
        )
    named = _named(folder, where)
    chosen = named or next((name for name in (SINGLE, INDEX) if (folder / name).is_file()), None)
    if chosen is None:
        raise _no_weights(folder, where)
    others = [name for name in (SINGLE, INDEX) if name != chosen and (folder / name).is_file()]
    why = f" ({_NAMED} in {_CONFIG} names it)" if named else ""
    note = f"{where}: {folder} has {chosen} and {' and '.join(others)}; {chosen} is read, as transformers does{why}"
    found = _of_index(folder, chosen, where) if chosen.endswith(".json") else WeightFiles((chosen,))
    return WeightFiles(found.names, found.index, found.listed, note if others else None)


def has_weight_files(folder: Path) -> bool:
    """Whether a folder has safetensors of a whole model."""
    return any((folder / name).is_file() for name in (SINGLE, INDEX)) or any(folder.glob("shard-*.safetensors"))


def _named(folder: Path, where: str) -> str | None:
    """The file of weights that the folder's config names, None if it names none."""
    name = read_mapping(folder / _CONFIG).get(_NAMED)  # whoever needs the config says what is wrong with it
    if name is None:
        return None
    if not _inside(name) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(
            f"{where}: {folder / _CONFIG} has {_NAMED}: {name!r}, which is no file of safetensors in this folder; "
            "take the key out"
        )
    return str(name)


def _of_index(folder: Path, name: str, where: str) -> WeightFiles:
    """The shards that an index lists."""
    path = folder / name
    listed: dict[str, list[str]] = {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        for tensor, shard in index["weight_map"].items():
            listed.setdefault(shard, []).append(tensor)
        complete = "metadata" in index
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where}: {path} is damaged; copy it again") from error
    if outside := [shard for shard in listed if not _inside(shard)]:
        raise CheckpointError(
            f"{where}: {path} names {outside[0]!r}, which is no file in this folder; copy it again"
        )
    if not complete:
        raise CheckpointError(
            f'{where}: {path} has no "metadata", without which transformers cannot read it; add "metadata": {{}}'
        )
    return WeightFiles(tuple(sorted(listed)), name, listed)


def _inside(name: Any) -> bool:
    """Whether a file's name is that of a file in the folder or below it."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _no_weights(folder: Path, where: str) -> CheckpointError:
    """What is wrong with a folder without a checkpoint."""
    if (folder / ADAPTER_CONFIG).is_file():
        return CheckpointError(
            f"{where}: {folder} is a LoRA adapter, which can be an expert but not stand alone; "
            "`evomerge merge` makes a model of it and its base"
        )
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in _TRAINING)
    if pickled := [name for name in names if name.endswith((".bin", ".pt", ".pth"))]:
        return CheckpointError(
            f"{where}: {folder} has pickled weights only ({some(pickled, 'files')}), and evomerge reads none; save "
            "it as safetensors (transformers: save_pretrained)"
        )
    other = [name for name in names if name.endswith((".safetensors", ".gguf", ".h5", ".msgpack", ".ckpt"))]
    hint = (
        f"transformers does not look for {some(other, 'files')}"
        if other
        else "is it a model folder with safetensors?"
    )
    return CheckpointError(f"{where}: {folder} has no {SINGLE}; {hint}")
