"""Model Breadcrumbs with TIES' sign election.

θ = θ0 + λ·elect(wk·mk(δk)), where mk leaves out the fraction gk of elements with the largest |δk|, and of the
others keeps the largest, the fraction dk of all elements. Davari & Belilovsky 2024, "Model breadcrumbs", arXiv
2312.06795, §3, with the sign election of Yadav et al. 2023, arXiv 2306.01708, §3.2-3.3.

- `weight`, per expert: any number.
- `density`, per expert, in (0, 1]: the fraction of elements kept.
- `gamma`, per expert, in [0, 1]: the fraction of largest elements left out, 0.01 by default. Fewer are left out
  where the density could not be reached otherwise.
- `lambda`: scales the whole sum; 1 by default.
- options `rescale` (default false): restore the L1 norm that each task vector had before; `normalize` (default
  false): divide by the weights that took part in each element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import DENSITY, LAMBDA, WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._masks import GAMMA, banded

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT, DENSITY, GAMMA, LAMBDA)
OPTIONS = {"normalize": False, "rescale": False}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """weight: (K,); lambda: (1,); and the scalars of `steps.band`."""
    return {
        "weight": list(tensor.values["weight"]),
        "lambda": list(tensor.values["lambda"]),
        **banded(tensor, tensor.values["weight"], tensor.values["gamma"]),
    }


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·elect(wk·mk(δk))."""
    terms = steps.band(steps.task_vectors(base, experts), s)
    return base + s["lambda"][0] * steps.elect(terms, s["weight"], normalize=options["normalize"])
