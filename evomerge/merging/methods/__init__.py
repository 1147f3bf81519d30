"""Merge methods, one a file. A new file here is a new method; nothing else has to change.

A method says what to do with one tensor's elements, given the base, the experts and a few scalars. Its module
fulfils `Method`:

- a docstring: the formula, the paper, what each parameter and option means;
- `PARAMETERS`: the coefficients that may vary by layer, module group, tensor and expert;
- `OPTIONS`: the switches that hold for the whole model, with their defaults;
- `EXPERTS`: (fewest, most) experts it takes; most is None where there is no limit;
- `NEEDS_ELEMENT_NUMBERS`: whether `merge` needs the elements' numbers (for hashed masks);
- `scalars(tensor) -> Scalars`: everything about one tensor that does not depend on the element: thresholds looked
  up, mask keys, divisors. Lists of floats become float32 tensors and lists of ints int32 tensors of shape (len,).
  `ByRow` arrays (n, rows, m) and `ByColumn` arrays (n, 1, columns) hold what varies by row (the last dimension is a
  row, a vector is one row) or by column (the first dimension is a column, a vector is one column);
- `merge(base, experts, s, options) -> Tensor`: the elementwise pass. `base` and each of `experts` are float32
  blocks of shape (n,), or (rows, columns) where a scalar is `ByRow` or `ByColumn`. `s` has what `scalars` returned
  (of a `ByRow` array, the rows of the block), and `s["element"]`, int32, the elements' numbers, if
  `NEEDS_ELEMENT_NUMBERS`. It returns float32 of the block's shape. Plain elementwise operations and look-ups only:
  the same code runs eager and compiled, with equal bits.

It may hold as well:

- `DIFFERENTIABLE`: tuple of the names of those parameters that have a derivative through `scalars` and `merge`, for
  a search that follows gradients (`merging.gradients`). The default is all parameters but those that select
  elements (`Parameter.selects`). A method with () has no gradient, and a search that follows gradients refuses it.
  A method that has `NEEDS_ELEMENT_NUMBERS`, the parameter `density` and the option `rescale` has a scalar `factor`,
  (K,), by which the kept elements of each expert are multiplied.

To read a method must not import torch, so that `evomerge status` and a refused experiment answer at once. So a
module here imports `Tensor` under `TYPE_CHECKING` alone, computes its scalars with numpy or plain Python, and
writes `merge` in the methods of its tensors and in `merging.kernels.steps`, which keeps the same rule:
`x.where(condition, 0.0)` for `torch.where(condition, x, 0.0)`, `x.relu()` for `torch.relu(x)`.

What a method has to know of a whole tensor (order statistics, angles) it looks up with `TensorInputs.table`. A
table is computed once per study, see `merging.kernels.tables`. Modules whose names begin with an underscore are
shared parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from evomerge import plugins
from evomerge.merging.kernels.kernel import Kernel
from evomerge.merging.kernels.scalars import ByColumn, ByRow, Scalars
from evomerge.recipes.parameters import Parameter

__all__ = [
    "DENSITY",
    "LAMBDA",
    "WEIGHT",
    "ByColumn",
    "ByRow",
    "Method",
    "Parameter",
    "Scalars",
    "TensorInputs",
    "differentiable",
    "load",
]


@dataclass(frozen=True)
class TensorInputs:
    """What `scalars` may use about one tensor.

    Attributes:
        name: the tensor's name; with `seed` and an expert's name it keys a mask.
        experts: the experts' names, in the order of `merge`'s `experts`.
        values: parameter -> its values for this tensor: K of them if per expert, else one.
        options: the method's options.
        seed: the recipe's seed.
        table: (kind, experts) -> this tensor's table of a kind of `merging.kernels.tables.KINDS`.
    """

    name: str
    experts: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]
    options: Mapping[str, bool]
    seed: int
    table: Callable[[str, Sequence[str]], Any]


class Method(Kernel, Protocol):
    """A module of this folder. `OPTIONS`, `NEEDS_ELEMENT_NUMBERS` and `merge` are those of a `Kernel`."""

    @property
    def PARAMETERS(self) -> tuple[Parameter, ...]:  # noqa: N802
        """The coefficients that may vary by layer, module group, tensor and expert."""

    @property
    def EXPERTS(self) -> tuple[int, int | None]:  # noqa: N802
        """The fewest and the most experts that the method takes; None where there is no most."""

    def scalars(self, tensor: TensorInputs, /) -> Scalars:
        """Everything about one tensor that does not depend on the element."""


WEIGHT = Parameter("weight", per_expert=True)
DENSITY = Parameter("density", per_expert=True, low=0.0, high=1.0, open_low=True, selects=True)
LAMBDA = Parameter("lambda", default=1.0)


def load(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: there is no such method; the message lists those there are.
    """
    return cast(Method, plugins.load("methods", name))


def differentiable(method: Method) -> tuple[str, ...]:
    """The names of a method's parameters that have a derivative."""
    names = tuple(parameter.name for parameter in method.PARAMETERS if not parameter.selects)
    own: tuple[str, ...] = getattr(method, "DIFFERENTIABLE", names)
    return own
