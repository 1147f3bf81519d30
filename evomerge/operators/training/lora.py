"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on a live model's linear layers, by hooks.

The model's modules stay as they are. What is kept of an adapter is W + BA, both factors float32; the scale that
training uses is in B. The head and the embeddings are left alone.
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
from evomerge.operators.training.corpus import entropy

_SCALE = 2.0  # of BA, alpha over rank; a power of two, so that it goes into B without rounding


_BLOCK, _DEVICE_BLOCK = 1 << 17, 1 << 26  # elements folded at a time


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
    """Fresh adapters, `NAME.A` (rank, inputs) and `NAME.B` (outputs, rank), float32 on the model's device.

    A is uniform in ±1/√inputs, drawn from (seed, NAME); B is 0.
    """
    found = {}
    for name, module in targets(model).items():
        outputs, inputs = _shape(module)
        generator = torch.Generator().manual_seed(entropy(seed, "lora", name))
        bound = 1.0 / math.sqrt(inputs)
        first = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        found[f"{name}.A"] = first.to(module.weight.device)
        found[f"{name}.B"] = torch.zeros(outputs, rank, device=module.weight.device)
    return found


@contextmanager
def hooked(model: Any, adapters: Mapping[str, Tensor]) -> Iterator[None]:
    """The live model's linear layers give Wx + 2·BAx meanwhile."""
    with ExitStack() as undo:
        for name, module in targets(model).items():
            hook = _hook(adapters[f"{name}.A"], adapters[f"{name}.B"])
            undo.callback(module.register_forward_hook(hook).remove)
        yield


def scaled(adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained adapters as they are kept."""
    return {name: tensor.detach() * (_SCALE if name.endswith(".B") else 1.0) for name, tensor in adapters.items()}


@torch.no_grad()
def fold(model: Any, kept: Mapping[str, Tensor]) -> None:
    """W ← W + BA, summed in float32 in the order of the rank: the same bits on any device, with any threads.

    Raises:
        CandidateError: the adapters are not of this model.
    """
    found = targets(model)
    names = {name.rpartition(".")[0] for name in kept}
    if strange := sorted(names - set(found)):
        raise CandidateError(f"the model has no linear layer {strange[0]} to fold an adapter into")
    for name in sorted(names):
        weight = found[name].weight
        first, second = (kept[f"{name}.{factor}"].to(weight.device) for factor in "AB")
        if (second.shape[0], first.shape[1]) != _shape(found[name]):
            raise CandidateError(f"{name}: the adapter is for a layer of another shape")
        rows = weight.t() if isinstance(found[name], Conv1D) else weight
        block = _BLOCK if weight.device.type == "cpu" else _DEVICE_BLOCK
        step = max(1, block // rows.shape[1])
        for start in range(0, rows.shape[0], step):
            part = rows[start : start + step]
            total = torch.zeros(part.shape, device=part.device)
            for column, row in zip(second[start : start + step].unbind(1), first, strict=True):
                total += column[:, None] * row  # a product and a sum, each rounded by itself
            part.copy_(total.add_(part.float()).to(part.dtype))


def _shape(module: Any) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer."""
    first, second = module.weight.shape
    return (second, first) if isinstance(module, Conv1D) else (first, second)


def _hook(first: Tensor, second: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        low = F.linear(F.linear(inputs[0].float(), first), second)
        return output + (_SCALE * low).to(output.dtype)

    return add
