"""Tensors whose names or shapes transformers changes when it loads them, converted as transformers does it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from evomerge.errors import CheckpointError
from evomerge.models.input import Input
from evomerge.models.loading import Skeleton, loading, text_modules, whole_model
from evomerge.models.overlays import LazyTensor
from evomerge.models.tensor_names import TOWERS, module_of, some

# The keys of transformers' report on loading -> what is wrong with a folder for which the report lists names.
_FAULTS = {
    "missing_keys": "lacks {}; all models must be fine-tuned from one base and saved under its tensor names",
    "mismatched_keys": "has {} in other shapes than its config.json says; copy it again",
}

_HEADLESS = (
    "lacks {}, and its config.json does not tie the head to the embedding, so that transformers would fill it with "
    "random numbers; set tie_word_embeddings: true there if the model ties them, else copy it again"
)


def converted_shapes(model: Input, live: Skeleton) -> dict[str, tuple[int, ...]]:
    """The tensors that transformers makes out of a folder's tensors, with their shapes. Reads headers alone.

    They have the live model's names, also where the folder's own class has the text model in another place: a text
    model may be an expert of one with towers, and the reverse.

    Args:
        live: the live model, to name the tensors that the folder lacks.

    Raises:
        CheckpointError: transformers cannot make the live model's tensors out of the folder's.
    """
    lacking = [name for name in live.shapes if name not in model.held]
    if not (model.folder / "config.json").is_file():
        raise CheckpointError(
            f"{model.where}: {model.folder} lacks {some(lacking)}, and has no config.json by which "
            "transformers could make them of others"
        )
    empty = {
        name: torch.empty(shape, device="meta", dtype=getattr(torch, model.dtypes[name], torch.int8))
        for name, shape in model.held.shapes.items()
    }
    made = model.empty
    with _complaining(model):
        loaded, info = type(made).from_pretrained(
            None,
            config=made.config,
            state_dict=empty,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_loaded(model, info, live)
    own = text_modules(made)
    pairs = zip(own, live.text, strict=True)
    model.renamed = {one: other for one, other in pairs if one and other and one != other}
    found = {name: tensor for name, tensor in loaded.state_dict().items() if name not in info["missing_keys"]}
    return {model.live_name(name): tuple(tensor.shape) for name, tensor in found.items()}


def _check_loaded(model: Input, info: Mapping[str, Any], live: Skeleton) -> None:
    """Refuses a folder of which transformers leaves tensors out, or for which it makes tensors up.

    Args:
        info: what transformers reports on loading: for each kind of fault, the tensors' names.
        live: the live model. What an expert may be without is no fault, see `models.family`.
    """
    for key, text in _FAULTS.items():
        names = sorted(entry[0] if isinstance(entry, tuple) else entry for entry in info[key])
        # Old GPT-2 files have the fill value of their masks in them, as scalars.
        names = [name for name in names if model.held.shapes.get(name) != ()]
        if key == "missing_keys":
            names = [name for name in names if name not in live.buffers and module_of(name) not in TOWERS]
            text = _HEADLESS if names and set(names) <= set(live.rows[1:]) else text
        if names:
            raise CheckpointError(f"{model.where}: {model.folder} {text.format(some(names))}")


@contextmanager
def _complaining(model: Input) -> Iterator[None]:
    """Turns a conversion that fails into one line. Only transformers' log says which tensor failed, and why."""
    with _transformers_log() as messages:
        try:
            with loading(model.folder, model.where):
                yield
        except CheckpointError as error:
            lines = [line for text in messages for line in text.splitlines()]
            failed = sorted(
                {line.split("|")[0].strip() for line in lines if "CONVERSION |" in line.replace("  ", " ")}
            )
            if not failed:
                raise
            reason = next((line for line in lines if "Error: " in line), "Error: its parts do not fit together")
            raise CheckpointError(
                f"{model.where}: {some(failed)} cannot be made of the tensors in {model.folder} "
                f"({reason.partition('Error: ')[2].rstrip('. ')}); one of them is missing or damaged, copy it again"
            ) from error


@contextmanager
def _transformers_log() -> Iterator[list[str]]:
    """The warnings that transformers' loader logs inside, which go nowhere else."""
    logger = logging.getLogger("transformers.modeling_utils")
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    before = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def convert(model: Input, live: Skeleton) -> dict[str, LazyTensor]:
    """The tensors that transformers loads from a folder under other names or with other content than lie there."""
    with _complaining(model):
        dtype = getattr(torch, model.held.dtype)
        loaded, info = whole_model(model.folder, model.source.trusted, dtype=dtype, output_loading_info=True)
    _check_loaded(model, info, live)
    converted = {}
    for own, tensor in loaded.state_dict().items():
        name = model.live_name(own)
        # Other dtypes than the loaded one are kept as they are: loading has rounded them.
        if not tensor.is_floating_point() or own in info["missing_keys"]:
            continue
        if name not in model.held or not torch.equal(model.held[name].to(tensor.dtype), tensor):
            converted[name] = LazyTensor(tensor.dtype, tuple(tensor.shape), partial(_same, tensor))
    return converted


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
