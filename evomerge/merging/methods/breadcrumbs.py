"""Model Breadcrumbs: leave out each task vector's largest elements and its smallest, add up the rest.

θ = θ0 + λ·Σk wk·mk(δk), where mk drops the fraction gk of largest |δk| and keeps the fraction dk of largest
that remain. Davari & Belilovsky 2024, "Model breadcrumbs", arXiv 2312.06795, §3. Both thresholds are looked up
in a table made once per study; elements that tie with one are all kept.

- `weight`, per expert: any number.
- `density`, per expert, in (0, 1]: the fraction of elements kept.
- `gamma`, per expert, in [0, 1]: the fraction of largest elements left out, 0.01 by default; less is left out
  where the density could not be reached otherwise.
- `lambda`: scales the whole sum; 1 by default.
- options `rescale` (default false): restore the L1 norm that the task vector had before; `normalize` (default
  false).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import DENSITY, LAMBDA, WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._masks import banded
from evomerge.merging.methods._weights import scaled_weights
from evomerge.recipes.parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

GAMMA = Parameter("gamma", per_expert=True, low=0.0, high=1.0, default=0.01, selects=True)
PARAMETERS = (WEIGHT, DENSITY, GAMMA, LAMBDA)
OPTIONS = {"normalize": False, "rescale": False}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """Those of the mask, the weights with λ and the normalization in its factors."""
    return banded(tensor, scaled_weights(tensor), tensor.values["gamma"])


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """θ0 + Σk wk·mk(δk)."""
    return base + steps.total(steps.band(steps.task_vectors(base, experts), s))
