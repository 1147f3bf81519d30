"""Weighted average of the experts' weights (model soup).

θ = Σk wk·θk, divided by Σk wk with `normalize`. The base takes no part; list it as an expert to give it a weight.
Wortsman et al. 2022, "Model soups", arXiv 2203.05482.

- `weight`, per expert: any number; with `normalize` only the proportions matter.
- option `normalize` (default true): divide the sum by Σk wk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import WEIGHT, Scalars, TensorInputs

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT,)
OPTIONS = {"normalize": True}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """weight: (K,), with the normalization in it."""
    weights = tensor.values["weight"]
    total = sum(weights)
    divisor = total if tensor.options["normalize"] and abs(total) >= 1e-8 else 1.0
    return {"weight": [weight / divisor for weight in weights]}


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, Σk wk·θk."""
    return steps.weighted_sum(experts, s["weight"])
