"""The streaming pass that every method runs in, and the elementwise steps that methods are made of.

A pass reads the base and the K experts once and writes the live parameter once: K+2 memory streams. The steps
are plain torch on float32 blocks. `torch.compile` fuses a method's steps into one loop (C++ on CPU, Triton on
GPU); eager runs the same code block by block, small enough for the cache, and gives the same bits.
"""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from evomerge import masks

EAGER_BLOCK = 1 << 16  # elements: a block's temporaries stay in the second-level cache
COMPILED_BLOCK = 1 << 26
SMALL = 1 << 12  # tensors below this run eager: a compiled call costs more than they do

# --- steps -------------------------------------------------------------------------------------------------


def task_vectors(base: Tensor, experts: Sequence[Tensor]) -> list[Tensor]:
    """δk = θk − θ0 (Ilharco et al. 2023)."""
    return [expert - base for expert in experts]


def weighted_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σk wk·xk, summed in the order of the experts. weights: float32 (K,)."""
    total = tensors[0] * weights[0]
    for k in range(1, len(tensors)):
        total = total + tensors[k] * weights[k]
    return total


def drop_random(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """DARE's drop and rescale (Yu et al. 2024, eq. 2): keep δk's element where its hash is within the cutoff.

    s: index int32 (n,); cutoff, salt_1, salt_2 int32 (K,); scale float32 (K,), 1/density or 1.
    """
    kept = []
    for k, delta in enumerate(deltas):
        keep = masks.bits(s["index"], s["salt_1"][k], s["salt_2"][k]) <= s["cutoff"][k]
        kept.append(torch.where(keep, delta * s["scale"][k], 0.0))
    return kept


def trim(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """TIES' trim (Yadav et al. 2023, §3.1): keep δk's elements of magnitude `threshold` and more.

    s: threshold, scale float32 (K,).
    """
    return [
        torch.where(delta.abs() >= s["threshold"][k], delta * s["scale"][k], 0.0) for k, delta in enumerate(deltas)
    ]


def elect(deltas: Sequence[Tensor], weights: Tensor, *, normalize: bool) -> Tensor:
    """TIES' sign election and disjoint merge (Yadav et al. 2023, §3.2-3.3), weighted as mergekit does.

    The elected sign is that of Σ wk·δk, + where the sum is 0. Weighted deltas of the other sign are left out.
    With `normalize` the sum is divided by the weights that took part, or by 1 where they add up to 0.
    """
    weighted = [delta * weights[k] for k, delta in enumerate(deltas)]
    total = weighted[0]
    for term in weighted[1:]:
        total = total + term
    positive = total >= 0
    merged = torch.zeros_like(total)
    divisor = torch.zeros_like(total)
    for k, term in enumerate(weighted):
        agrees = torch.where(positive, term > 0, term < 0)
        merged = merged + torch.where(agrees, term, 0.0)
        if normalize:
            divisor = divisor + torch.where(agrees, weights[k], 0.0)
    if not normalize:
        return merged
    return merged / torch.where(divisor == 0, 1.0, divisor)


# --- the pass ----------------------------------------------------------------------------------------------


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler on CPU, Triton on GPU."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX") or "g++"
        return any(shutil.which(name) for name in (compiler, "clang++", "c++"))
    return torch.utils._triton.has_triton()  # type: ignore[no-untyped-call, unused-ignore]


Pass = Callable[[Tensor, Tensor, list[Tensor], dict[str, Tensor]], None]


def _make_pass(method: ModuleType, options: Mapping[str, bool]) -> Pass:
    def merge_pass(out: Tensor, base: Tensor, experts: list[Tensor], s: dict[str, Tensor]) -> None:
        if method.INDEXED:
            count = torch.arange(out.shape[0], dtype=torch.int32, device=out.device)
            s = {**s, "index": count + s["start"]}
        merged = method.merge(base.float(), [expert.float() for expert in experts], s, options)
        out.copy_(merged)

    return merge_pass


@functools.cache
def _eager_pass(method: ModuleType, options: tuple[tuple[str, bool], ...]) -> Pass:
    return _make_pass(method, dict(options))


@functools.cache
def _compiled_pass(method: ModuleType, options: tuple[tuple[str, bool], ...], experts: int) -> Pass:
    del experts  # a compiled pass for each number of experts, so that none is traced again
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(_make_pass(method, dict(options)), dynamic=True, fullgraph=True)


_broken_compilers: set[str] = set()  # device types whose compiler has failed in this process


def _or_eager(compiled: Pass, eager: Pass) -> Pass:
    """The compiled pass; the eager one from the first time that compiling fails."""

    def merge_pass(out: Tensor, base: Tensor, experts: list[Tensor], s: dict[str, Tensor]) -> None:
        try:
            compiled(out, base, experts, s)
        except torch._dynamo.exc.TorchDynamoException as error:
            _broken_compilers.add(out.device.type)
            reason = str(error).split("\n", 1)[0]
            warnings.warn(f"merging without torch.compile, slower but with the same bits: {reason}", stacklevel=3)
            eager(out, base, experts, s)

    return merge_pass


def _as_tensor(values: Sequence[float] | Sequence[int], device: torch.device) -> Tensor:
    integers = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int32 if integers else torch.float32, device=device)


def run(
    method: ModuleType,
    options: Mapping[str, bool],
    out: Tensor,
    base: Tensor,
    experts: Sequence[Tensor],
    scalars: Mapping[str, Sequence[float] | Sequence[int]],
    *,
    compiled: bool,
) -> None:
    """Writes the merge of one tensor into `out`, in place.

    Args:
        method: a module of `evomerge.methods`.
        options: all the method's options.
        out: the live parameter, contiguous, float32, bfloat16 or float16; arithmetic is float32 throughout.
        base, experts: tensors of out's number of elements, contiguous, on out's device, of any float dtype.
        scalars: what the method's `scalars` returned for this tensor.
        compiled: run the fused pass; else eager. The bits are the same.
    """
    flat_out, flat_base = out.view(-1), base.view(-1)
    flat_experts = [expert.view(-1) for expert in experts]
    size = flat_out.shape[0]
    key = tuple(sorted(options.items()))
    merge_pass, block = _eager_pass(method, key), EAGER_BLOCK
    if compiled and size >= SMALL and out.device.type not in _broken_compilers:
        merge_pass, block = _or_eager(_compiled_pass(method, key, len(experts)), merge_pass), COMPILED_BLOCK
    s = {name: _as_tensor(values, out.device) for name, values in scalars.items()}
    with torch.no_grad():
        for start in range(0, size, block):
            stop = min(start + block, size)
            if method.INDEXED:
                wrapped = (start + 2**31) % 2**32 - 2**31
                s["start"] = torch.tensor(wrapped, dtype=torch.int32, device=out.device)
            experts_block = [expert[start:stop] for expert in flat_experts]
            merge_pass(flat_out[start:stop], flat_base[start:stop], experts_block, s)
