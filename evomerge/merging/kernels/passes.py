"""The streaming pass that every method runs in: block by block through one tensor, eager or compiled.

A pass reads the base and the K experts once and writes the live parameter once: K+2 memory streams. Its steps are
plain torch on float32 blocks. `torch.compile` fuses a method's steps into one loop (C++ on CPU, Triton on GPU);
eager runs the same code on blocks that are small enough for the cache, and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.merging.kernels import blocks, compiling
from evomerge.merging.kernels.arguments import Arguments, arguments, starting_at
from evomerge.merging.kernels.blocks import Pass
from evomerge.merging.kernels.kernel import Kernel
from evomerge.merging.kernels.layouts import shape_along
from evomerge.merging.kernels.scalars import Scalars

# Elements: a block's temporaries stay in the second-level cache, and torch does not share so few out to threads,
# which on a busy machine would wait for each other at every step.
EAGER_BLOCK = 1 << 15

COMPILED_BLOCK = 1 << 26

SMALL = 1 << 6  # tensors of fewer elements run eager


def merge(
    method: Kernel,
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
        arguments: see `merging.kernels.arguments.arguments`.
        compiled: run the fused pass; else the eager one. The bits are the same.
    """
    if not out.numel():
        return
    shape = shape_along(out.shape, arguments.along)
    key = tuple((name, options[name]) for name in method.OPTIONS)
    # torch compiles lengths of 1 apart.
    compiled = compiled and out.numel() >= SMALL and min(shape) > 1 and not compiling.has_failed(out.device)
    lanes = None
    if compiled and method.NEEDS_ELEMENT_NUMBERS and out.device.type == "cpu":
        columns = shape[1] if len(shape) > 1 else blocks.row_length(out.numel())
        if blocks.FEWEST_LANES <= columns <= blocks.MOST_LANES:
            shape, lanes = (out.numel() // columns, columns), blocks.all_lanes()[:columns]
    tensors = [tensor.view(shape) for tensor in (out, base, *experts)]
    if compiled:
        run_pass = compiling.compiled_pass(method, key, arguments, tensors, lanes)
        _stream(run_pass, COMPILED_BLOCK, tensors, arguments, lanes)
    else:
        _stream(blocks.eager_pass(method, key, arguments.layout), EAGER_BLOCK, tensors, arguments, lanes)


def _stream(run_pass: Pass, block: int, tensors: Sequence[Tensor], given: Arguments, lanes: Tensor | None) -> None:
    """Runs a pass over a tensor, at most `block` elements (but a whole row) at a time.

    tensors: out, base and experts, laid out.
    """
    length = tensors[0].shape[0]
    width = tensors[0].numel() // length
    step = max(1, block // width)
    with torch.no_grad():
        for start in range(0, length, step):
            part = slice(start, start + step)
            out, base, *experts = tensors if step >= length else [tensor[part] for tensor in tensors]
            ints = starting_at(given.ints, start * width) if start else given.ints
            arrays = given.arrays
            if given.along == "rows" and step < length:
                arrays = tuple(array[:, part] for array in arrays)
            run_pass(out, base, experts, given.floats, ints, arrays, lanes)


def run(
    method: Kernel,
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
