"""Adds the tensors that transformers does not save, because the model's class does not build them, to a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from evomerge.models.checkpoints import Checkpoint
from evomerge.models.weight_files import INDEX, SINGLE


def add(folder: Path, tensors: Mapping[str, torch.Tensor], shard: str) -> None:
    """Adds tensors to the weights in a folder, as further shards under the same index.

    Args:
        shard: the greatest size of a file, such as `4GB`.
    """
    if not tensors:
        return
    saved = Checkpoint(folder, str(folder))
    home = {name: saved.file(name).name for name in saved}
    size = saved.nbytes + sum(tensor.nbytes for tensor in tensors.values())
    del saved
    parts = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=shard).filename_to_tensors.values()
    old = sorted(set(home.values()))
    count = len(old) + len(parts)
    renamed = {name: _shard_name(number, count) for number, name in enumerate(old, 1)}
    for name, new in renamed.items():
        (folder / name).rename(folder / new)
    weight_map = {tensor: renamed[name] for tensor, name in home.items()}
    for number, names in enumerate(parts, len(old) + 1):
        file = _shard_name(number, count)
        contiguous = {name: tensors[name].detach().cpu().contiguous() for name in names}
        save_file(contiguous, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index: dict[str, Any] = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shard_name(number: int, count: int) -> str:
    return f"{Path(SINGLE).stem}-{number:05d}-of-{count:05d}.safetensors"
