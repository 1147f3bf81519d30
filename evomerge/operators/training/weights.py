"""The weights that a training changes: low-rank adapters beside the model's, or all of the model's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import CandidateError
from evomerge.operators.training import forward, lora
from evomerge.operators.training.settings import Weights


@dataclass(frozen=True)
class Trainable:
    """Which weights are trained, and how the model is set meanwhile.

    Attributes:
        method: adapters (`lora`) or all weights (`full`).
        rank: the rank of the adapters.
        seed: the seed of the adapters' first values.
        length: tokens of the longest row.
        checkpointing: whether activations within layers are computed again on the way back.
    """

    method: Weights
    rank: int
    seed: int
    length: int
    checkpointing: bool


@contextmanager
def opened(model: Any, trainable: Trainable) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters to train, by name, while the model is set for training; see `forward.training`."""
    length, checkpointing = trainable.length, trainable.checkpointing
    with ExitStack() as undo:
        if trainable.method == "lora":
            factors = lora.factors(model, trainable.rank, trainable.seed)
            parameters = {name: nn.Parameter(tensor) for name, tensor in factors.items()}
            undo.enter_context(forward.training(model, (), length, checkpointing=checkpointing))
            undo.enter_context(lora.hooked(model, parameters))
        else:
            parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
            own = list(parameters.values())
            undo.enter_context(forward.training(model, own, length, checkpointing=checkpointing))
        yield parameters


def kept(parameters: Mapping[str, nn.Parameter], method: Weights) -> dict[str, Tensor]:
    """Trained parameters as they are put on disk, and taken by `put`."""
    return lora.scaled(parameters) if method == "lora" else dict[str, Tensor](parameters)


def put(model: nn.Module, arrays: Mapping[str, Tensor], method: Weights) -> None:
    """Puts into a model what a training kept.

    Raises:
        CandidateError: the arrays are of another model.
    """
    if method == "lora":
        lora.fold(model, arrays)
    else:
        _replace(model, arrays)


@torch.no_grad()
def _replace(model: nn.Module, arrays: Mapping[str, Tensor]) -> None:
    """Copies whole tensors over the model's parameters of the same names."""
    parameters = dict(model.named_parameters())
    for name, tensor in arrays.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != tensor.shape or parameter.dtype != tensor.dtype:
            raise CandidateError(f"what was kept of the training is of another model: {name} does not fit")
        parameter.copy_(tensor)
