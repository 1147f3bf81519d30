"""Merge methods, one a file. A new file here is a new method; nothing else has to change.

A method says what to do with one tensor's elements, given the base, the experts and a few scalars. Its module
holds:

- a docstring: the formula, the paper, what each parameter means;
- `PARAMETERS`: tuple of `Parameter`, the coefficients that may vary by layer, module group, tensor and expert;
- `OPTIONS`: dict of the switches that hold for the whole model, with their defaults;
- `EXPERTS`: (fewest, most) experts it takes; most is None where there is no limit;
- `NEEDS_ELEMENT_NUMBERS`: whether `merge` needs the elements' numbers (for hashed masks);
- `scalars(tensor: TensorInputs) -> Scalars`: everything about one tensor that does not depend on the element:
  thresholds looked up, mask keys, divisors. Lists of floats become float32 tensors and lists of ints int32 tensors
  of shape (len,). `ByRow` arrays (n, rows, m) and `ByColumn` arrays (n, 1, columns) hold what varies by row (the
  last dimension is a row, a vector is one row) or by column (the place behind the first dimension);
- `merge(base, experts, s, options) -> Tensor`: the elementwise pass. `base` and each of `experts` are float32
  blocks of shape (n,), or (rows, columns) where a scalar is `ByRow` or `ByColumn`; `s` has what `scalars` returned
  (of a `ByRow` array, the block's rows), and `s["element"]`, int32, the elements' numbers, if
  `NEEDS_ELEMENT_NUMBERS`. Returns float32 of the block's shape. Plain torch elementwise operations and look-ups
  only: the same code runs eager and compiled, with equal bits.

It may hold as well:

- `DIFFERENTIABLE`: tuple of the names of those parameters that have a derivative through `scalars` and `merge`, for
  a search that goes by gradients (`merging.gradients`). By default all but those that say which elements take part
  (`SELECTING`); () if the method has none, and is refused there. A method that has `NEEDS_ELEMENT_NUMBERS`, the
  parameter `density` and the option `rescale` has a scalar `factor`, (K,), that what is kept of each expert is
  multiplied by.

What a method has to know of the whole tensor (order statistics, angles) it looks up in `TensorInputs.table`; it is
computed once per study, see `merging.kernels.tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from evomerge.merging.kernels.arguments import ByColumn, ByRow, Scalars
from evomerge.recipes.parameters import Parameter

__all__ = [
    "DENSITY",
    "LAMBDA",
    "SELECTING",
    "WEIGHT",
    "ByColumn",
    "ByRow",
    "Parameter",
    "Scalars",
    "TensorInputs",
    "differentiable",
]


@dataclass(frozen=True)
class TensorInputs:
    """What `scalars` may use about one tensor.

    Attributes:
        name: the tensor's name; with `seed` and an expert's name it keys a mask.
        experts: the experts' names, in the order of `merge`'s `experts`.
        values: parameter -> its values for this tensor: K of them if per expert, else one.
        options: the method's options.
        table: (kind, experts) -> this tensor's table of a kind of `merging.kernels.tables.KINDS`.
    """

    name: str
    experts: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]
    options: Mapping[str, bool]
    seed: int
    table: Callable[[str, Sequence[str]], Any]


WEIGHT = Parameter("weight", per_expert=True)


DENSITY = Parameter("density", per_expert=True, low=0.0, high=1.0, open_low=True)


LAMBDA = Parameter("lambda", default=1.0)

# Parameters that say which elements take part. As functions of them, merged weights jump and are flat between.
SELECTING = ("density", "epsilon", "gamma", "select_topk")


def differentiable(method: ModuleType) -> tuple[str, ...]:
    """The names of a method's parameters that have a derivative."""
    names = tuple(parameter.name for parameter in method.PARAMETERS if parameter.name not in SELECTING)
    found: tuple[str, ...] = getattr(method, "DIFFERENTIABLE", names)
    return found
