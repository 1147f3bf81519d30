"""Passes that a compiler has fused into one loop: C++ on CPU, Triton on GPU.

All that this package takes of torch's private parts stands here; `tests/merging/kernels/test_torch_canary.py` holds
each of them. They are imported where they are used: that takes more than a second, and an eager pass needs none.

A compiler that does not work costs a warning: the passes run eager then, with the same bits.
"""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import first_line
from evomerge.merging.kernels.arguments import Arguments, Layout
from evomerge.merging.kernels.blocks import Options, Pass, eager_pass, make_pass
from evomerge.merging.kernels.kernel import Kernel


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler on CPU, Triton on GPU."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX") or "g++"
        return any(shutil.which(name) for name in (compiler, "clang++", "c++"))
    from torch.utils._triton import has_triton

    return has_triton()  # type: ignore[no-untyped-call, unused-ignore]


_broken: set[str] = set()  # device types whose compiler has failed in this process


def has_failed(device: torch.device) -> bool:
    """Whether compiling for this type of device has failed in this process."""
    return device.type in _broken


def compiled_pass(
    method: Kernel, options: Options, given: Arguments, tensors: Sequence[Tensor], lanes: Tensor | None
) -> Pass:
    """The pass compiled for tensors like these; the eager one from the first time that compiling fails.

    Args:
        tensors: out, base and experts, laid out as the pass will see them.
        lanes: see `merging.kernels.blocks.elements`.
    """
    eager = eager_pass(method, options, given.layout)
    device = tensors[0].device
    if has_failed(device):
        return eager
    if device.type != "cpu":
        return _or_eager(guarded_pass(method, options, given.layout, len(tensors) - 2), eager)
    signature = _Signature(
        dtypes=tuple(tensor.dtype for tensor in tensors),
        dimensions=tensors[0].dim(),
        arrays=tuple((array.shape[0], 1 if array.shape[2] == 1 else -1) for array in given.arrays),
        lanes=lanes is not None,
        threads=torch.get_num_threads(),
    )
    try:
        return _direct_pass(method, options, given.layout, given.along, signature)
    except Exception as error:  # compilers raise what they like
        _give_up(device.type, error)
        return eager


def _or_eager(compiled: Pass, eager: Pass) -> Pass:
    """The compiled pass; the eager one where compiling fails, which `torch.compile` tells at a call only."""

    from torch._dynamo.exc import TorchDynamoException

    def merge_pass(out: Tensor, *rest: Any) -> None:
        try:
            compiled(out, *rest)
        except TorchDynamoException as error:
            _give_up(out.device.type, error)
            eager(out, *rest)

    return merge_pass


def _give_up(device: str, error: Exception) -> None:
    _broken.add(device)
    warnings.warn(f"merging without a compiler, slower but with the same bits: {first_line(error)}", stacklevel=4)


# --- through torch.compile ---------------------------------------------------------------------------------


@functools.cache
def guarded_pass(method: Kernel, options: Options, layout: Layout, experts: int) -> Pass:
    """The pass through `torch.compile`, which looks at every call's arguments before it runs the right version."""
    merge_pass: Any = make_pass(method, options, layout)
    # torch counts and looks up compiled versions by code object: each pass gets one of its own.
    merge_pass.__code__ = merge_pass.__code__.replace(co_name=f"{method.__name__.rpartition('.')[2]}_{experts}")
    return torch.compile(merge_pass, dynamic=True, fullgraph=True)  # type: ignore[no-any-return, unused-ignore]


# --- without torch.compile ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Signature:
    """What a pass is compiled for once and for all. Sizes stay open, the number of rows among them.

    Attributes:
        dtypes: those of out, base and experts.
        dimensions: 1 or 2, those of the tensors as they are laid out.
        arrays: of each array its first and last size, the last -1 if it varies from tensor to tensor.
        lanes: whether the pass is given lanes.
        threads: the number of threads that the compiled loops are shared out to.
    """

    dtypes: tuple[torch.dtype, ...]
    dimensions: int
    arrays: tuple[tuple[int, int], ...]
    lanes: bool
    threads: int


@functools.cache
def _direct_pass(method: Kernel, options: Options, layout: Layout, along: str, signature: _Signature) -> Pass:
    """The pass compiled on CPU, without the look that `torch.compile` takes at the arguments of every call: that
    takes longer than to merge a small tensor.

    Raises:
        Exception: whatever a compiler raises that does not work, or what was compiled holds for some sizes only.
    """
    from torch._inductor import compile as compile_graph
    from torch.fx.experimental.proxy_tensor import make_fx

    merge_pass = make_pass(method, options, layout)
    experts, arrays = len(signature.dtypes) - 2, len(signature.arrays)

    def flat_pass(out: Tensor, base: Tensor, *rest: Tensor) -> tuple[()]:
        lanes = rest[-1] if signature.lanes else None
        floats, ints = rest[experts : experts + 2]
        own_arrays = tuple(rest[experts + 2 : experts + 2 + arrays])
        merge_pass(out, base, list(rest[:experts]), floats, ints, own_arrays, lanes)
        return ()

    graph = make_fx(flat_pass, tracing_mode="symbolic")(*_examples(layout, along, signature))
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    compiled = compile_graph(graph, inputs)
    numbers = inputs[2 + experts : 4 + experts + arrays]
    _check_sizes(inputs[0].fake_mode.shape_env.guards, [one.shape[0] for one in numbers])

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


def _check_sizes(guards: Sequence[Any], fixed: Sequence[int | torch.SymInt]) -> None:
    """Refuses a trace that holds for some sizes only.

    Args:
        guards: what the tracer took to be true of the sizes.
        fixed: sizes that a layout and a signature fix: how many numbers there are, and how long an array is.
    """
    symbols = {symbol for one in fixed if isinstance(one, torch.SymInt) for symbol in one.node.expr.free_symbols}
    expressions = [guard.expr for guard in guards]
    if any(not expression.free_symbols <= symbols for expression in expressions):
        raise RuntimeError(f"what was compiled holds for some sizes only: {expressions}")


# Sizes of the tensors that a pass is traced with: no two alike, and none of the length of a list of scalars, or the
# compiler would take them to be the same.
_ROWS, _COLUMNS, _POINTS = 1009, 2003, 4099


def _examples(layout: Layout, along: str, signature: _Signature) -> list[Tensor]:
    """Tensors to trace a pass with, in the order of its arguments."""
    shape = (_ROWS,) if signature.dimensions == 1 else (_ROWS, _COLUMNS)
    examples = [torch.zeros(shape, dtype=dtype) for dtype in signature.dtypes]
    counts = {kind: sum(count for _, own, count in layout if own == kind) for kind in ("float", "int")}
    examples.append(torch.zeros(counts["float"]))
    examples.append(torch.zeros(counts["int"] + 1, dtype=torch.int32))
    for first, last in signature.arrays:
        points = _POINTS if last < 0 else last
        examples.append(torch.zeros((first, _ROWS, points) if along == "rows" else (first, 1, _COLUMNS)))
    if signature.lanes:
        examples.append(torch.zeros(_COLUMNS, dtype=torch.int32))
    return examples
