"""Tensors whose names or shapes transformers changes on loading, converted as transformers does it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from evomerge.errors import CheckpointError
from evomerge.models import checkpoints
from evomerge.models.adapters import Adapter
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.loading import Skeleton, empty_model, loading
from evomerge.models.overlays import LazyTensor
from evomerge.models.source import Source
from evomerge.models.tensor_names import Shapes

# --- one input ---------------------------------------------------------------------------------------------


@dataclass
class Input:
    """One input as its headers tell it.

    Attributes:
        held: the weights of its folder; of an adapter, the adapter's own tensors.
        shapes, dtypes: of the tensors that it will have, before vocabularies are matched.
        adapter: what it does to the base, if it is one.
        converts: whether transformers makes its tensors out of those of the folder.
    """

    where: str
    folder: Path
    source: Source
    held: Checkpoint
    shapes: Shapes
    dtypes: Mapping[str, str]
    adapter: Adapter | None = None
    converts: bool = False

    def file(self, name: str) -> Path:
        """The file that a tensor comes from; the folder, if it is not simply copied from one."""
        return self.held.file(name) if name in self.held else self.folder


def converted_shapes(model: Input, frame: Skeleton) -> dict[str, tuple[int, ...]]:
    """The tensors that transformers makes out of a folder's, with their shapes. Reads headers alone."""
    lacking = [name for name in frame.shapes if name not in model.held]
    if not (model.folder / "config.json").is_file():
        raise CheckpointError(
            f"{model.where}: {model.folder} lacks {checkpoints.some(lacking)}, and has no config.json by which "
            "transformers could make them of others"
        )
    empty = {
        name: torch.empty(shape, device="meta", dtype=getattr(torch, model.dtypes[name], torch.int8))
        for name, shape in model.held.shapes.items()
    }
    made = empty_model(model.folder, model.where)
    if getattr(made.config, "quantization_config", None):
        raise CheckpointError(
            f"{model.where}: {model.folder} is a quantized checkpoint; give the float16, bfloat16 or float32 one"
        )
    with _complaining(model):
        loaded, info = type(made).from_pretrained(
            None,
            config=made.config,
            state_dict=empty,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_loaded(model, info)
    return {name: tuple(tensor.shape) for name, tensor in loaded.state_dict().items()}


def _check_loaded(model: Input, info: Mapping[str, Any]) -> None:
    """Refuses a folder of which transformers leaves something out, or makes something up."""
    what = {
        "missing_keys": "lacks {}; all models must be fine-tuned from one base and saved under its tensor names",
        "mismatched_keys": "has {} in other shapes than its config.json says; copy it again",
        "unexpected_keys": "has {}, which its model does not know; copy it again, its config.json too",
    }
    for key, text in what.items():
        names = sorted(entry[0] if isinstance(entry, tuple) else entry for entry in info[key])
        # Old GPT-2 files have the fill value of their masks in them, as scalars.
        names = [name for name in names if model.held.shapes.get(name) != ()]
        if names:
            raise CheckpointError(f"{model.where}: {model.folder} {text.format(checkpoints.some(names))}")


@contextmanager
def _complaining(model: Input) -> Iterator[None]:
    """Turns a conversion that fails into one line. What failed stands in transformers' log alone."""
    logger = logging.getLogger("transformers.modeling_utils")
    kept: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    before = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        with loading(model.folder, model.where):
            yield
    except CheckpointError as error:
        lines = [line for text in kept for line in text.splitlines()]
        odd = sorted({line.split("|")[0].strip() for line in lines if "CONVERSION |" in line.replace("  ", " ")})
        if not odd:
            raise
        reason = next((line for line in lines if "Error: " in line), "Error: its parts do not fit together")
        raise CheckpointError(
            f"{model.where}: {checkpoints.some(odd)} cannot be made of the tensors in {model.folder} "
            f"({reason.partition('Error: ')[2].rstrip('. ')}); one of them is missing or damaged, copy it again"
        ) from error
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def convert(model: Input) -> dict[str, LazyTensor]:
    """The tensors that transformers loads from a folder otherwise than they lie in it."""
    with _complaining(model):
        loaded, info = AutoModelForCausalLM.from_pretrained(
            model.folder, dtype=getattr(torch, model.held.dtype), output_loading_info=True
        )
    _check_loaded(model, info)
    found = {}
    for name, tensor in loaded.state_dict().items():
        # Other dtypes than the loaded one are kept as they are: loading has rounded them.
        if name not in model.held or not torch.equal(model.held[name].to(tensor.dtype), tensor):
            found[name] = LazyTensor(tensor.dtype, tuple(tensor.shape), partial(_same, tensor))
    return found


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
