"""Model Breadcrumbs: leave out each task vector's largest elements and its smallest, add up the rest.

θ = θ0 + λ·Σk wk·mk(δk), where mk leaves out the fraction gk of elements with the largest |δk|, and of the others
keeps the largest, the fraction dk of all elements. Davari & Belilovsky 2024, "Model breadcrumbs", arXiv 2312.06795,
§3. Both thresholds are looked up in a table made once per study. Elements that tie with a threshold are all kept.

- `weight`, per expert: any number.
- `density`, per expert, in (0, 1]: the fraction of elements kept.
- `gamma`, per expert, in [0, 1]: the fraction of largest elements left out, 0.01 by default. Fewer are left out
  where the density could not be reached otherwise.
- `lambda`: scales the whole sum; 1 by default.
- options `rescale` (default false): restore the L1 norm that each task vector had before; `normalize` (default
  false): divide the sum by Σk wk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import DENSITY, LAMBDA, WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._masks import GAMMA, banded
from evomerge.merging.methods._weights import scaled_weights

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT, DENSITY, GAMMA, LAMBDA)
OPTIONS = {"normalize": False, "rescale": False}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """The scalars of `steps.band`; their factors hold wk, λ and the normalization."""
    return banded(tensor, scaled_weights(tensor), tensor.values["gamma"])


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·Σk wk·mk(δk)."""
    return base + steps.total(steps.band(steps.task_vectors(base, experts), s))
