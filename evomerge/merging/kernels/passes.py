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

import torch._inductor
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from evomerge.errors import first_line
from evomerge.merging.kernels import tables
from evomerge.merging.kernels.arguments import Arguments, Layout, Scalars, arguments, named_scalars

# Elements: a block's temporaries stay in the second-level cache, and torch does not share so few out to threads,
# which on a busy machine would wait for each other at every step.
EAGER_BLOCK = 1 << 15


COMPILED_BLOCK = 1 << 26


SMALL = 1 << 6  # tensors below this run eager


# --- the pass ----------------------------------------------------------------------------------------------


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler on CPU, Triton on GPU."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX") or "g++"
        return any(shutil.which(name) for name in (compiler, "clang++", "c++"))
    return torch.utils._triton.has_triton()  # type: ignore[no-untyped-call, unused-ignore]


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
        s = named_scalars(layout, floats, ints, arrays)
        if method.NEEDS_ELEMENT_NUMBERS:
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
    """The longest row of at most `_MOST_LANES` elements that divides `size`, two rows at least."""
    return next(width for width in range(min(_MOST_LANES, max(size // 2, 1)), 0, -1) if size % width == 0)


@functools.cache
def _eager_pass(method: ModuleType, options: Options, layout: Layout) -> Pass:
    return _make_pass(method, options, layout)


@functools.cache
def _compiled_pass(method: ModuleType, options: Options, layout: Layout, experts: int) -> Pass:
    """The pass through `torch.compile`, which looks at every call's arguments before it runs the right version."""
    merge_pass: Any = _make_pass(method, options, layout)
    # torch counts and looks up compiled versions by code object: each pass gets one of its own.
    merge_pass.__code__ = merge_pass.__code__.replace(co_name=f"{method.__name__.rpartition('.')[2]}_{experts}")
    return torch.compile(merge_pass, dynamic=True, fullgraph=True)  # type: ignore[no-any-return, unused-ignore]


@dataclass(frozen=True)
class _Signature:
    """What a pass is compiled for once and for all. Sizes are left open, and so is what rows there are.

    Attributes:
        dtypes: of out, base and experts.
        dimensions: of them as they are laid out, 1 or 2.
        arrays: of each array its first and last size, the last -1 if it varies from tensor to tensor.
        threads: that the compiled loops are shared out to.
    """

    dtypes: tuple[torch.dtype, ...]
    dimensions: int
    arrays: tuple[tuple[int, int], ...]
    lanes: bool
    threads: int


# Sizes of the tensors that a pass is traced with: no two alike, and none of the length of a list of scalars, or the
# compiler would take them to be the same.
_ROWS, _COLUMNS, _POINTS = 1009, 2003, 4099


@functools.cache
def _direct_pass(method: ModuleType, options: Options, layout: Layout, along: str, signature: _Signature) -> Pass:
    """The pass compiled on CPU, without the look that `torch.compile` takes at the arguments of every call: that
    takes longer than to merge a small tensor.

    Raises:
        Exception: whatever a compiler raises that does not work, or what was compiled holds for some sizes only.
    """
    merge_pass = _make_pass(method, options, layout)
    experts, arrays = len(signature.dtypes) - 2, len(signature.arrays)

    def flat_pass(out: Tensor, base: Tensor, *rest: Tensor) -> tuple[()]:
        lanes = rest[-1] if signature.lanes else None
        floats, ints = rest[experts : experts + 2]
        merge_pass(
            out, base, list(rest[:experts]), floats, ints, tuple(rest[experts + 2 : experts + 2 + arrays]), lanes
        )
        return ()

    graph = make_fx(flat_pass, tracing_mode="symbolic")(*_examples(layout, along, signature))
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    compiled = torch._inductor.compile(graph, inputs)
    lengths = [scalars.shape[0] for scalars in inputs[2 + experts : 4 + experts]]
    fixed = {symbol for one in lengths if isinstance(one, torch.SymInt) for symbol in one.node.expr.free_symbols}
    guards = [guard.expr for guard in inputs[0].fake_mode.shape_env.guards]
    if any(not guard.free_symbols <= fixed for guard in guards):
        raise RuntimeError(f"what was compiled holds for some sizes only: {guards}")

    def run_pass(
        out: Tensor,
        base: Tensor,
        experts: list[Tensor],
        floats: Tensor,
        ints: Tensor,
        arrays: tuple[Tensor, ...],
        lanes: Tensor | None,
    ) -> None:
        compiled(out, base, *experts, floats, ints, *arrays, *(() if lanes is None else (lanes,)))

    return run_pass


def _examples(layout: Layout, along: str, signature: _Signature) -> list[Tensor]:
    """Tensors to trace a pass with."""
    shape = (_ROWS,) if signature.dimensions == 1 else (_ROWS, _COLUMNS)
    found = [torch.zeros(shape, dtype=dtype) for dtype in signature.dtypes]
    counts = {kind: sum(count for _, own, count in layout if own == kind) for kind in ("float", "int")}
    found.append(torch.zeros(counts["float"]))
    found.append(torch.zeros(counts["int"] + 1, dtype=torch.int32))
    for first, last in signature.arrays:
        points = _POINTS if last < 0 else last
        found.append(torch.zeros((first, _ROWS, points) if along == "rows" else (first, 1, _COLUMNS)))
    if signature.lanes:
        found.append(torch.zeros(_COLUMNS, dtype=torch.int32))
    return found


_broken_compilers: set[str] = set()  # device types whose compiler has failed in this process


def _compiled(
    method: ModuleType, options: Options, given: Arguments, tensors: Sequence[Tensor], lanes: Tensor | None
) -> Pass:
    """The pass compiled for these tensors, laid out; the eager one from the first time that compiling fails."""
    eager = _eager_pass(method, options, given.layout)
    device = tensors[0].device.type
    if device in _broken_compilers:
        return eager
    if device != "cpu":
        return _or_eager(_compiled_pass(method, options, given.layout, len(tensors) - 2), eager)
    ends = tuple((array.shape[0], 1 if array.shape[2] == 1 else -1) for array in given.arrays)
    signature = _Signature(
        dtypes=tuple(tensor.dtype for tensor in tensors),
        dimensions=tensors[0].dim(),
        arrays=ends,
        lanes=lanes is not None,
        threads=torch.get_num_threads(),
    )
    try:
        return _direct_pass(method, options, given.layout, given.along, signature)
    except Exception as error:  # compilers raise what they like
        _give_up(device, error)
        return eager


def _or_eager(compiled: Pass, eager: Pass) -> Pass:
    def merge_pass(out: Tensor, *rest: Any) -> None:
        try:
            compiled(out, *rest)
        except torch._dynamo.exc.TorchDynamoException as error:
            _give_up(out.device.type, error)
            eager(out, *rest)

    return merge_pass


def _give_up(device: str, error: Exception) -> None:
    _broken_compilers.add(device)
    warnings.warn(
        f"merging without a compiler, slower but with the same bits: {first_line(error)}", stacklevel=4
    )


def _shape(out: Tensor, along: str) -> tuple[int, ...]:
    """How a tensor is viewed for a pass: flat, or (rows, columns), or (first dimension, the rest)."""
    if along == "flat":
        return (out.numel(),)
    if along == "rows":
        return tables.rows_of(out.shape)
    return (out.shape[0], out.numel() // out.shape[0]) if out.dim() > 1 and out.numel() else (1, out.numel())


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
        method: a module of `merging.methods`.
        options: all the method's options.
        out: the live parameter, contiguous, float32, bfloat16 or float16; arithmetic is float32 throughout.
        base, experts: tensors of out's shape, contiguous, on out's device, of any float dtype.
        arguments: see `arguments`.
        compiled: run the fused pass; else eager. The bits are the same.
    """
    if not out.numel():
        return
    shape = _shape(out, arguments.along)
    options_key = tuple((name, options[name]) for name in method.OPTIONS)
    # torch compiles lengths of 1 apart.
    compiled = compiled and out.numel() >= SMALL and min(shape) > 1 and out.device.type not in _broken_compilers
    lanes = None
    if compiled and method.NEEDS_ELEMENT_NUMBERS and out.device.type == "cpu":
        columns = shape[1] if len(shape) > 1 else _width(out.numel())
        if _FEWEST_LANES <= columns <= _MOST_LANES:
            shape, lanes = (out.numel() // columns, columns), _lanes()[:columns]
    whole, *inputs = (tensor.view(shape) for tensor in (out, base, *experts))
    run_pass, block = _eager_pass(method, options_key, arguments.layout), EAGER_BLOCK
    if compiled:
        run_pass, block = _compiled(method, options_key, arguments, (whole, *inputs), lanes), COMPILED_BLOCK
    width = out.numel() // shape[0]
    step = max(1, block // width)
    with torch.no_grad():
        if step >= shape[0]:
            first, *rest = inputs
            run_pass(whole, first, rest, arguments.floats, arguments.ints, arguments.arrays, lanes)
            return
        for start in range(0, shape[0], step):
            part = slice(start, start + step)
            first, *rest = (tensor[part] for tensor in inputs)
            ints = _starting_at(arguments.ints, start * width) if start else arguments.ints
            arrays = arguments.arrays
            if arguments.along == "rows":
                arrays = tuple(array[:, part] for array in arrays)
            run_pass(whole[part], first, rest, arguments.floats, ints, arrays, lanes)


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
