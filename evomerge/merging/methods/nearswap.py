"""NearSwap: take the expert's value where it is near the base's, and move towards it by a fixed distance where not.

θ = θ0 + clip(t/|δ|, 0, 1)·δ. This is mergekit's `nearswap`, after the recipe of the model QuartetAnemoi-70B.

- `t`, at least 0: the distance that an element moves at most. Good values have the size of a task vector's
  elements, so search it on a log scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import Scalars, TensorInputs
from evomerge.recipes.parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (Parameter("t", low=0.0),)
OPTIONS: dict[str, bool] = {}
EXPERTS = (1, 1)
NEEDS_ELEMENT_NUMBERS = False

SMALLEST = 1e-6  # the least that |δ| counts as


def scalars(tensor: TensorInputs) -> Scalars:
    """The scalar t, (1,)."""
    return {"t": list(tensor.values["t"])}


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + clip(t/|δ|, 0, 1)·δ."""
    (delta,) = steps.task_vectors(base, experts)
    share = (s["t"][0] / delta.abs().clamp(min=SMALLEST)).clamp(max=1.0)
    return base + share * delta
