"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on a live model's linear layers, by hooks.

The model's modules stay as they are. A trained adapter stands for W + BA: its factors A and B are kept in float32,
with the scale that training uses in B. The head and the embeddings take no adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from evomerge.errors import CandidateError
from evomerge.models import low_rank
from evomerge.operators.training.corpus import entropy

_SCALE = 2.0  # alpha over rank, the factor of BA; a power of two, so that it goes into B without rounding


def targets(model: Any) -> dict[str, Any]:
    """The linear layers that take adapters, by name: all but those with the embeddings' or the head's weights."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    untouched = {id(module.weight) for module in ends if module is not None}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in untouched
    }


def factors(model: Any, rank: int, seed: int) -> dict[str, Tensor]:
    """Fresh adapters by name: `NAME.A` (rank, inputs) and `NAME.B` (outputs, rank), float32 on the model's device.

    A is uniform in ±1/√inputs, drawn from (seed, NAME). B is 0, so that a fresh adapter changes nothing.
    """
    fresh = {}
    for name, module in targets(model).items():
        outputs, inputs = _shape(module)
        generator = torch.Generator().manual_seed(entropy(seed, "lora", name))
        bound = 1.0 / math.sqrt(inputs)
        first = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        fresh[f"{name}.A"] = first.to(module.weight.device)
        fresh[f"{name}.B"] = torch.zeros(outputs, rank, device=module.weight.device)
    return fresh


@contextmanager
def hooked(model: Any, adapters: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context, each of the live model's linear layers gives Wx + 2·BAx."""
    with ExitStack() as undo:
        for name, module in targets(model).items():
            hook = _hook(adapters[f"{name}.A"], adapters[f"{name}.B"])
            undo.callback(module.register_forward_hook(hook).remove)
        yield


def scaled(adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained adapters as they are kept: the scale is in B."""
    return {name: tensor.detach() * (_SCALE if name.endswith(".B") else 1.0) for name, tensor in adapters.items()}


@torch.no_grad()
def fold(model: Any, kept: Mapping[str, Tensor]) -> None:
    """Puts adapters into a model: W ← W + BA, the same bits on any device, with any threads.

    Raises:
        CandidateError: the adapters are not of this model.
    """
    layers = targets(model)
    names = {name.rpartition(".")[0] for name in kept}
    if strange := sorted(names - set(layers)):
        raise CandidateError(f"the model has no linear layer {strange[0]} to fold an adapter into")
    for name in sorted(names):
        weight = layers[name].weight
        first, second = (kept[f"{name}.{factor}"].to(weight.device) for factor in "AB")
        if (second.shape[0], first.shape[1]) != _shape(layers[name]):
            raise CandidateError(f"{name}: the adapter is for a layer of another shape")
        rows = weight.t() if isinstance(layers[name], Conv1D) else weight
        low_rank.fold(rows, second, first, out=rows)


def _shape(module: Any) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer."""
    first, second = module.weight.shape
    return (second, first) if isinstance(module, Conv1D) else (first, second)


def _hook(first: Tensor, second: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A forward hook that adds the product of an adapter, A being `first` and B `second`, in the output's dtype."""

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        low = F.linear(F.linear(inputs[0].float(), first), second)
        return output + (_SCALE * low).to(output.dtype)

    return add
