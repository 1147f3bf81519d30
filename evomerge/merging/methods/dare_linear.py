"""DARE with task arithmetic: drop elements of each task vector at random, rescale the rest, add them up.

θ = θ0 + λ·Σk wk·mk(δk)/dk, where mk keeps each element with probability dk. Yu et al. 2024, "Language models are
super Mario", arXiv 2311.03099, eq. 2. A mask is a hash of (seed, expert, tensor, element), see
`merging.kernels.masks`.

- `weight`, per expert: any number.
- `density`, per expert, in (0, 1]: the fraction of elements kept.
- `lambda`: scales the whole sum; 1 by default.
- options `rescale` (default true): divide kept elements by the density, as the paper does (mergekit restores the L1
  norm of the elements that its mask happened to keep); `normalize` (default false): divide the sum by Σk wk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import DENSITY, LAMBDA, WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._masks import random_drop
from evomerge.merging.methods._weights import scaled_weights

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT, DENSITY, LAMBDA)
OPTIONS = {"normalize": False, "rescale": True}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = True


def scalars(tensor: TensorInputs) -> Scalars:
    """The scalars of `steps.drop_random`; their factors hold wk, λ and the normalization."""
    return random_drop(tensor, scaled_weights(tensor))


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·Σk wk·mk(δk)/dk."""
    return base + steps.total(steps.drop_random(steps.task_vectors(base, experts), s))
