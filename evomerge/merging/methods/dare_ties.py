"""DARE with TIES' sign election: drop at random, rescale, elect a sign for each element, add what agrees.

θ = θ0 + λ·elect(wk·mk(δk)/dk), where mk keeps each element with probability dk. Yu et al. 2024, arXiv 2311.03099,
eq. 2, with the sign election of Yadav et al. 2023, arXiv 2306.01708, §3.2-3.3. A mask is a hash of (seed, expert,
tensor, element), see `merging.kernels.masks`.

- `weight`, per expert: any number.
- `density`, per expert, in (0, 1]: the fraction of elements kept.
- `lambda`: scales the whole sum; 1 by default.
- options `rescale` (default true): divide kept elements by the density, as the paper does; `normalize` (default
  false): divide by the weights that took part in each element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import DENSITY, LAMBDA, WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._masks import random_drop

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT, DENSITY, LAMBDA)
OPTIONS = {"normalize": False, "rescale": True}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = True


def scalars(tensor: TensorInputs) -> Scalars:
    """weight: (K,); lambda: (1,); and the scalars of `steps.drop_random`."""
    return {
        "weight": list(tensor.values["weight"]),
        "lambda": list(tensor.values["lambda"]),
        **random_drop(tensor, tensor.values["weight"]),
    }


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·elect(wk·mk(δk)/dk)."""
    terms = steps.drop_random(steps.task_vectors(base, experts), s)
    return base + s["lambda"][0] * steps.elect(terms, s["weight"], normalize=options["normalize"])
