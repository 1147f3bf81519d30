"""One expert as it is, scaled.

θ = s·θ1. This is mergekit's `passthrough`. With a scale for each module group or tensor it damps or strengthens
parts of a model.

- `scale`: any number; 1 by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.methods import Scalars, TensorInputs
from evomerge.recipes.parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (Parameter("scale", default=1.0),)
OPTIONS: dict[str, bool] = {}
EXPERTS = (1, 1)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """The scalar s, (1,)."""
    return {"scale": list(tensor.values["scale"])}


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, s·θ1."""
    return experts[0] * s["scale"][0]
