"""Weighted average of the experts' weights (model soup).

θ = Σk wk·θk, divided by Σk wk with `normalize`. The base takes no part; list it as an expert to give it a weight.
Wortsman et al. 2022, "Model soups", arXiv 2203.05482.

- `weight`, per expert: any number; with `normalize` only the proportions matter, and they must not add up to 0.
- option `normalize` (default true): divide the sum by Σk wk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._weights import shares

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT,)
OPTIONS = {"normalize": True}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """weight: (K,), with the normalization in it."""
    return {"weight": shares(tensor)}


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, Σk wk·θk."""
    return steps.weighted_sum(experts, s["weight"])
