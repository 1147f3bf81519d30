"""Spherical interpolation between any number of experts, or of their task vectors.

The vectors are projected to the unit sphere, averaged there in the tangent space at their normalized weighted mean
m, mapped back, and given the weighted mean of their lengths: θ = θ0 + (Σk wk·|δk|)·exp_m(Σk wk·(uk − ⟨uk, m⟩m)),
with uk = δk/|δk|. With `task_vectors` off, θk takes the place of δk, and θ0 is left out. The result is a linear
combination of the vectors, whose factors follow from the vectors' dot products. So a pass only adds up. Buss &
Fillmore 2001, "Spherical averages", in the one-step form of mergekit's Multi-SLERP.

- `weight`, per expert: any number; with `normalize` they must not add up to 0.
- options `normalize` (default true): divide the weights by their sum; `task_vectors` (default true): average task
  vectors and not weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merging.kernels import steps
from evomerge.merging.methods import WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._angles import dots_of, length
from evomerge.merging.methods._weights import shares

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT,)
OPTIONS = {"normalize": True, "task_vectors": True}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """weight: (K,), the factor of each vector."""
    if len(tensor.experts) == 1:
        return {"weight": [1.0]}
    weights = np.array(shares(tensor))
    gram = tensor.table("gram", tensor.experts).dots
    return {"weight": _factors(dots_of(gram, task_vectors=tensor.options["task_vectors"]), weights).tolist()}


def _factors(dots: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The factors of the vectors in their spherical average, (K,).

    An array v of K numbers stands for the vector Σk vk·xk below.

    Args:
        dots: (K, K), the dot products of the vectors xk.
        weights: (K,).
    """
    lengths = np.sqrt(np.maximum(np.diagonal(dots), 0.0))
    inverse = 1.0 / np.where(lengths > 0.0, lengths, 1.0)
    units = weights * inverse
    size = length(units, dots)
    # The weighted directions cancel: there is no mean direction to start from, and its factors would be huge.
    if size <= 1e-6 * float(np.abs(weights).sum()):
        return weights
    mean = units / size
    along = (dots @ mean) * inverse
    tangent = units - float(weights @ along) * mean
    angle = length(tangent, dots) + _TINY
    moved: np.ndarray = mean * np.cos(angle) + tangent * (np.sin(angle) / angle)
    return moved * float(lengths @ weights)


_TINY = 1e-8


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + Σk fk·δk, or Σk fk·θk without `task_vectors`."""
    if not options["task_vectors"]:
        return steps.weighted_sum(experts, s["weight"])
    return base + steps.weighted_sum(steps.task_vectors(base, experts), s["weight"])
