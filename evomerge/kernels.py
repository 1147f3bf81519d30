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
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from evomerge import masks, tables
from evomerge.tables import ByColumn, ByRow, Scalars

# Elements: a block's temporaries stay in the second-level cache, and torch does not share so few out to threads,
# which on a busy machine would wait for each other at every step.
EAGER_BLOCK = 1 << 15
COMPILED_BLOCK = 1 << 26
SMALL = 1 << 6  # tensors below this run eager

# --- steps -------------------------------------------------------------------------------------------------


def task_vectors(base: Tensor, experts: Sequence[Tensor]) -> list[Tensor]:
    """δk = θk − θ0 (Ilharco et al. 2023)."""
    return [expert - base for expert in experts]


def total(tensors: Sequence[Tensor]) -> Tensor:
    """Σk xk, summed in the order of the experts."""
    summed = tensors[0]
    for tensor in tensors[1:]:
        summed = summed + tensor
    return summed


def weighted_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σk wk·xk, summed in the order of the experts. weights: float32 (K,)."""
    return total([tensor * weights[k] for k, tensor in enumerate(tensors)])


def drop_random(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """DARE's drop and rescale (Yu et al. 2024, eq. 2): keep δk's element where its hash is within the cutoff.

    s: element int32 (n,); cutoff, salt_1, salt_2 int32 (K,); scale float32 (K,).
    """
    kept = []
    for k, delta in enumerate(deltas):
        keep = masks.bits(s["element"], s["salt_1"][k], s["salt_2"][k]) <= s["cutoff"][k]
        kept.append(torch.where(keep, delta * s["scale"][k], 0.0))
    return kept


def drop_by_rank(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """DELLA's MAGPRUNE (Deep et al. 2024, §3): keep δk's element with probability p = lowest + r/steepness, r in
    [0, 1] being its rank by magnitude in its row.

    An element whose uniform is u is kept if u < p, that is if r > q = (u - lowest)·steepness: if its magnitude is
    above the row's quantile at q. Of magnitudes that tie, either all of these or none are above; the hash's last
    bit decides whether they take their highest rank or their lowest, so on average their mean rank.

    s: element int32 (rows, columns); salt_1, salt_2, exact int32 (K,); lowest, steepness, scale, half float32 (K,);
    quantiles float32 (K, rows, points). exact is 1 and half 0 where all ranks of a row are among its points. Else
    they are 0 and 1/2: an element between two points counts as half-way.
    """
    kept = []
    points = s["quantiles"].shape[2]
    for k, delta in enumerate(deltas):
        bits = masks.bits(s["element"], s["salt_1"][k], s["salt_2"][k])
        uniform = ((bits >> 8).float() + 2.0**23) * 2.0**-24  # exact, and below 1
        above = uniform - s["lowest"][k]
        quantile = torch.where(above < 0.0, -1.0, above * s["steepness"][k]).clamp(max=2.0)
        place = (quantile.clamp(min=0.0, max=1.0) * (points - 1) + s["half"][k]).to(torch.int32)
        highest = bits & 1
        place = (place + highest * s["exact"][k]).clamp(max=points - 1)
        threshold = torch.gather(s["quantiles"][k], 1, place.to(torch.int64))
        size = delta.abs()
        passes = torch.where(highest == 0, size > threshold, size >= threshold)
        keep = (quantile < 0.0) | ((quantile < 1.0) & passes)
        kept.append(torch.where(keep, delta * s["scale"][k], 0.0))
    return kept


def band(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """Keep δk's elements of magnitude `low` to `high`: TIES' trim (Yadav et al. 2023, §3.1) where high is infinite,
    Breadcrumbs' mask (Davari & Belilovsky 2024, §3) where not.

    s: low, high, scale float32 (K,).
    """
    kept = []
    for k, delta in enumerate(deltas):
        size = delta.abs()
        keep = (size >= s["low"][k]) & (size <= s["high"][k])
        kept.append(torch.where(keep, delta * s["scale"][k], 0.0))
    return kept


def elect(deltas: Sequence[Tensor], weights: Tensor, *, normalize: bool, vote: Tensor | None = None) -> Tensor:
    """TIES' sign election and disjoint merge (Yadav et al. 2023, §3.2-3.3), weighted as mergekit does.

    The elected sign is that of `vote`, Σ wk·δk by default, + where that is 0. Weighted deltas of the other sign are
    left out. With `normalize` the sum is divided by the weights that took part, or by 1 where they add up to 0.
    """
    weighted = [delta * weights[k] for k, delta in enumerate(deltas)]
    positive = (total(weighted) if vote is None else vote) >= 0
    if not normalize:
        up, down = total([torch.relu(term) for term in weighted]), total([torch.relu(-term) for term in weighted])
        return torch.where(positive, up, -down)
    agrees = [torch.where(positive, term > 0, term < 0) for term in weighted]
    merged = total([torch.where(agree, term, 0.0) for agree, term in zip(agrees, weighted, strict=True)])
    divisor = total([torch.where(agree, weights[k], 0.0) for k, agree in enumerate(agrees)])
    return merged / torch.where(divisor == 0, 1.0, divisor)


# --- the pass ----------------------------------------------------------------------------------------------


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler on CPU, Triton on GPU."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX") or "g++"
        return any(shutil.which(name) for name in (compiler, "clang++", "c++"))
    return torch.utils._triton.has_triton()  # type: ignore[no-untyped-call, unused-ignore]


Layout = tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Arguments:
    """What a pass over one tensor takes besides the tensors.

    Attributes:
        layout: of each scalar: its name, "float", "int", "rows" or "columns", and how many numbers it has.
        floats, ints: the numbers, one behind the other, on the pass's device. The last of `ints` is the number of
            the block's first element.
        arrays: float32, what varies by row (n, rows, m) or by column (n, 1, columns).
    """

    layout: Layout
    floats: Tensor
    ints: Tensor
    arrays: tuple[Tensor, ...]

    @property
    def along(self) -> str:
        """How a tensor is laid out for the pass: "flat", or in two dimensions as "rows" or "columns"."""
        kinds = {kind for _, kind, _ in self.layout}
        return "rows" if "rows" in kinds else "columns" if "columns" in kinds else "flat"


_SLOT = 16  # numbers: each tensor's begin at a multiple of 64 bytes


def arguments(scalars: Sequence[Scalars], device: torch.device) -> list[Arguments]:
    """The arguments of many tensors' passes, brought to the device in one transfer."""
    floats: list[float] = []
    ints: list[int] = []
    found: list[tuple[Layout, slice, slice, tuple[Tensor, ...]]] = []
    for one in scalars:
        layout: list[tuple[str, str, int]] = []
        arrays: list[Tensor] = []
        starts = len(floats), len(ints)
        for name, values in one.items():
            if isinstance(values, ByRow | ByColumn):
                layout.append((name, "rows" if isinstance(values, ByRow) else "columns", 0))
                arrays.append(torch.from_numpy(values.array).to(device, torch.float32))
            elif all(isinstance(value, int) for value in values):
                layout.append((name, "int", len(values)))
                ints.extend(int(value) for value in values)
            else:
                layout.append((name, "float", len(values)))
                floats.extend(values)
        ints.append(0)
        found.append((tuple(layout), slice(starts[0], len(floats)), slice(starts[1], len(ints)), tuple(arrays)))
        floats.extend([0.0] * (-len(floats) % _SLOT))
        ints.extend([0] * (-len(ints) % _SLOT))
    all_floats = torch.tensor(floats, dtype=torch.float32, device=device)
    all_ints = torch.tensor(ints, dtype=torch.int32, device=device)
    return [Arguments(layout, all_floats[f], all_ints[i], arrays) for layout, f, i, arrays in found]


# out, base, experts, floats, ints, arrays, lanes
Pass = Callable[[Tensor, Tensor, list[Tensor], Tensor, Tensor, tuple[Tensor, ...], Tensor | None], None]
Options = tuple[tuple[str, bool], ...]


def _make_pass(method: ModuleType, options: Options, layout: Layout) -> Pass:
    chosen = dict(options)

    def merge_pass(
        out: Tensor,
        base: Tensor,
        experts: list[Tensor],
        floats: Tensor,
        ints: Tensor,
        arrays: tuple[Tensor, ...],
        lanes: Tensor | None,
    ) -> None:
        s = _named(layout, floats, ints, arrays)
        if method.INDEXED:
            s["element"] = _elements(out, ints[-1], lanes)
        merged = method.merge(base.float(), [expert.float() for expert in experts], s, chosen)
        out.copy_(merged)

    return merge_pass


def _elements(out: Tensor, start: Tensor, lanes: Tensor | None) -> Tensor:
    """The numbers of a block's elements, int32, in its shape.

    lanes: int32 (columns,), 0, 1, 2, ... of a block in two dimensions. On a CPU it is faster to load them than to
    make them: a compiled pass that makes them takes 1.2 times as long.
    """
    if lanes is None:
        return torch.arange(out.numel(), dtype=torch.int32, device=out.device).view(out.shape) + start
    rows = torch.arange(out.shape[0], dtype=torch.int32, device=out.device) * out.shape[1]
    return (rows + start)[:, None] + lanes[None, :]


_FEWEST_LANES, _MOST_LANES = 1 << 6, 1 << 14  # the most stay in the first two cache levels


@functools.cache
def _lanes() -> Tensor:
    return torch.arange(_MOST_LANES, dtype=torch.int32)


@functools.cache
def _width(size: int) -> int:
    """The longest row of at most `_MOST_LANES` elements that `size` elements can be cut into, two rows at least."""
    return next(width for width in range(min(_MOST_LANES, max(size // 2, 1)), 0, -1) if size % width == 0)


def _named(layout: Layout, floats: Tensor, ints: Tensor, arrays: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The scalars by name, as views."""
    found = {}
    left = iter(arrays)
    at = {"float": 0, "int": 0}
    for name, kind, count in layout:
        if kind in at:
            found[name] = (floats if kind == "float" else ints)[at[kind] : at[kind] + count]
            at[kind] += count
        else:
            found[name] = next(left)
    return found


@functools.cache
def _eager_pass(method: ModuleType, options: Options, layout: Layout) -> Pass:
    return _make_pass(method, options, layout)


@functools.cache
def _compiled_pass(method: ModuleType, options: Options, layout: Layout, experts: int) -> Pass:
    merge_pass: Any = _make_pass(method, options, layout)
    # torch counts and looks up compiled versions by code object: each pass gets one of its own.
    merge_pass.__code__ = merge_pass.__code__.replace(co_name=f"{method.__name__.rpartition('.')[2]}_{experts}")
    return torch.compile(merge_pass, dynamic=True, fullgraph=True)  # type: ignore[no-any-return, unused-ignore]


_broken_compilers: set[str] = set()  # device types whose compiler has failed in this process


def _or_eager(compiled: Pass, eager: Pass) -> Pass:
    """The compiled pass; the eager one from the first time that compiling fails."""

    def merge_pass(out: Tensor, *rest: Any) -> None:
        try:
            compiled(out, *rest)
        except torch._dynamo.exc.TorchDynamoException as error:
            _broken_compilers.add(out.device.type)
            reason = str(error).split("\n", 1)[0]
            warnings.warn(f"merging without torch.compile, slower but with the same bits: {reason}", stacklevel=3)
            eager(out, *rest)

    return merge_pass


def _laid_out(tensor: Tensor, along: str) -> Tensor:
    """A view of a tensor for a pass: flat, or (rows, columns), or (first dimension, the rest)."""
    if along == "flat":
        return tensor.view(-1)
    if along == "rows":
        return tensor.view(tables.rows_of(tensor.shape))
    return tensor.view(tensor.shape[0], -1) if tensor.dim() > 1 and tensor.numel() else tensor.view(1, -1)


def merge(
    method: ModuleType,
    options: Mapping[str, bool],
    out: Tensor,
    base: Tensor,
    experts: Sequence[Tensor],
    arguments: Arguments,
    *,
    compiled: bool,
) -> None:
    """Writes the merge of one tensor into `out`, in place.

    Args:
        method: a module of `evomerge.methods`.
        options: all the method's options.
        out: the live parameter, contiguous, float32, bfloat16 or float16; arithmetic is float32 throughout.
        base, experts: tensors of out's shape, contiguous, on out's device, of any float dtype.
        arguments: see `arguments`.
        compiled: run the fused pass; else eager. The bits are the same.
    """
    along = arguments.along
    whole = _laid_out(out, along)
    inputs = [_laid_out(tensor, along) for tensor in (base, *experts)]
    key = tuple(sorted((name, options[name]) for name in method.OPTIONS))
    run_pass, block, lanes = _eager_pass(method, key, arguments.layout), EAGER_BLOCK, None
    # torch compiles lengths of 1 apart.
    worthwhile = whole.numel() >= SMALL and min(whole.shape) > 1
    if compiled and worthwhile and out.device.type not in _broken_compilers:
        run_pass = _or_eager(_compiled_pass(method, key, arguments.layout, len(experts)), run_pass)
        block = COMPILED_BLOCK
        if method.INDEXED and out.device.type == "cpu":
            columns = whole.shape[1] if along != "flat" else _width(whole.numel())
            if _FEWEST_LANES <= columns <= _MOST_LANES:
                whole, inputs = whole.view(-1, columns), [tensor.view(-1, columns) for tensor in inputs]
                lanes = _lanes()[:columns]
    width = whole.numel() // whole.shape[0] if whole.numel() else 1
    step = max(1, block // width)
    with torch.no_grad():
        for start in range(0, whole.shape[0] if whole.numel() else 0, step):
            stop = min(start + step, whole.shape[0])
            first, *rest = (tensor[start:stop] for tensor in inputs)
            ints = _starting_at(arguments.ints, start * width) if start else arguments.ints
            arrays = arguments.arrays
            if along == "rows":
                arrays = tuple(array[:, start:stop] for array in arrays)
            run_pass(whole[start:stop], first, rest, arguments.floats, ints, arrays, lanes)


def _starting_at(ints: Tensor, element: int) -> Tensor:
    """`ints` for a block that begins with that element, int32: the number wraps."""
    moved = ints.clone()
    moved[-1] = (element + 2**31) % 2**32 - 2**31
    return moved


def run(
    method: ModuleType,
    options: Mapping[str, bool],
    out: Tensor,
    base: Tensor,
    experts: Sequence[Tensor],
    scalars: Scalars,
    *,
    compiled: bool,
) -> None:
    """`merge` of one tensor by itself.

    Args:
        scalars: what the method's `scalars` returned for this tensor.
    """
    (given,) = arguments([scalars], out.device)
    merge(method, options, out, base, experts, given, compiled=compiled)
