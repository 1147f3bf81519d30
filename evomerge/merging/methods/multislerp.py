"""Spherical interpolation between any number of experts, or of their task vectors.

The vectors are projected to the unit sphere, averaged there in the tangent space at their normalized weighted
mean m, mapped back, and given the weighted mean of their lengths: θ = θ0 + (Σk wk·|δk|)·exp_m(Σk wk·(uk − ⟨uk,
m⟩m)), uk = δk/|δk|; with `task_vectors` off the same with θk for δk and without the base. All of it is a linear
combination of the vectors whose factors follow from their dot products, so a pass only adds up. Buss & Fillmore
2001, "Spherical averages", in the one-step form of mergekit's Multi-SLERP.

- `weight`, per expert: any number.
- options `normalize` (default true): divide the weights by their sum; `task_vectors` (default true).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merging.kernels import steps
from evomerge.merging.methods import WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._angles import dots_of

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
    weights = np.array(tensor.values["weight"])
    if tensor.options["normalize"] and abs(weights.sum()) >= 1e-8:
        weights = weights / weights.sum()
    gram = tensor.table("gram", tensor.experts).dots
    return {"weight": _factors(dots_of(gram, task_vectors=tensor.options["task_vectors"]), weights).tolist()}


def _factors(dots: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The factors of the vectors, (K,), from their dot products (K, K). A vector v stands for Σk vk·xk."""
    lengths = np.sqrt(np.maximum(np.diagonal(dots), 0.0))
    inverse = 1.0 / np.where(lengths > 0.0, lengths, 1.0)
    units = weights * inverse
    length = _length(units, dots)
    # The weighted directions cancel: there is no mean direction to start from, and its factors would be huge.
    if length <= 1e-6 * float(np.abs(weights).sum()):
        return weights
    mean = units / length
    along = (dots @ mean) * inverse
    tangent = units - float(weights @ along) * mean
    angle = _length(tangent, dots) + _TINY
    moved: np.ndarray = mean * np.cos(angle) + tangent * (np.sin(angle) / angle)
    return moved * float(lengths @ weights)


def _length(vector: np.ndarray, dots: np.ndarray) -> float:
    return math.sqrt(max(float(vector @ dots @ vector), 0.0))


_TINY = 1e-8


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """Σk fk·δk over θ0, or Σk fk·θk."""
    if not options["task_vectors"]:
        return steps.weighted_sum(experts, s["weight"])
    return base + steps.weighted_sum(steps.task_vectors(base, experts), s["weight"])
