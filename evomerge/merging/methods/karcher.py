"""The Karcher mean of the experts' weights on the sphere: the point whose arcs to them are shortest in squares.

θ = (Σk ak·|θk|)·m with ak = wk/Σk wk and uk = θk/|θk|, where m minimizes Σk ak·arccos²⟨m, uk⟩. It is found by
steps m ← exp_m(Σk ak·log_m(uk)). With `task_vectors` δk takes the place of θk, and the mean is added to θ0. The
result of every step is a linear combination of the vectors, whose factors follow from the vectors' dot products. So
the iteration runs on K numbers, and a pass only adds up. Karcher 1977, "Riemannian center of mass and mollifier
smoothing"; for models arXiv 2603.04972.

- `weight`, per expert, at least 0: its share of the mean; 1 by default.
- `max_iter`: the greatest number of steps, rounded down; 10 by default. `tol`: the length of a step after which no
  other follows, and of an arc that counts as none; 1e-5 by default. The names and defaults are mergekit's.
- option `task_vectors` (default false): average task vectors and not weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merging.kernels import steps
from evomerge.merging.methods import Scalars, TensorInputs
from evomerge.merging.methods._angles import dots_of, length
from evomerge.recipes.parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (
    Parameter("weight", per_expert=True, low=0.0, default=1.0),
    Parameter("max_iter", low=0.0, default=10.0),
    Parameter("tol", low=0.0, default=1e-5),
)
DIFFERENTIABLE = ("weight",)
OPTIONS = {"task_vectors": False}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False

OPPOSITE = 1e-5  # an arc so near to π has no direction


def scalars(tensor: TensorInputs) -> Scalars:
    """weight: (K,), the factor of each vector."""
    weights = np.array(tensor.values["weight"])
    if len(weights) == 1:
        return {"weight": [1.0]}
    shares = weights / weights.sum() if weights.sum() > 0.0 else np.full(len(weights), 1.0 / len(weights))
    dots = dots_of(tensor.table("gram", tensor.experts).dots, task_vectors=tensor.options["task_vectors"])
    most, tol = int(tensor.values["max_iter"][0]), tensor.values["tol"][0]
    return {"weight": _factors(dots, shares, most, tol).tolist()}


def _factors(dots: np.ndarray, shares: np.ndarray, most: int, tol: float) -> np.ndarray:
    """The factors of the vectors in the Karcher mean, (K,).

    Args:
        dots: (K, K), the vectors' dot products.
        shares: (K,), ak.
        most, tol: see `_mean`.
    """
    lengths = np.sqrt(np.maximum(np.diagonal(dots), 0.0))
    there = lengths > 0.0
    if not there.any():
        return shares
    inverse = np.where(there, 1.0 / np.where(there, lengths, 1.0), 0.0)
    between = dots * inverse[:, None] * inverse[None, :]  # the unit vectors' dot products
    share = np.where(there, shares, 0.0)
    mean = _mean(between, share / share.sum() if share.sum() > 0.0 else there / there.sum(), most, tol)
    factors: np.ndarray = mean * inverse * float(shares @ lengths)
    return factors


def _mean(cosines: np.ndarray, shares: np.ndarray, most: int, tol: float) -> np.ndarray:
    """The factors of unit vectors in their Karcher mean on the unit sphere, (K,).

    Args:
        cosines: (K, K), the vectors' dot products.
        shares: (K,), ak; they add up to 1.
        most: the greatest number of steps.
        tol: the length of a step or an arc that counts as none.
    """
    mean = shares.copy()
    if length(mean, cosines) <= tol:
        mean = np.eye(len(shares))[int(np.argmax(shares))]
    mean = mean / length(mean, cosines)
    for _ in range(most):
        along = np.clip(cosines @ mean, -1.0, 1.0)
        arcs = np.arccos(along)
        still = (arcs <= tol) | (arcs > math.pi - OPPOSITE)
        pull = np.where(still, 0.0, shares * arcs / np.where(still, 1.0, np.sin(arcs)))
        tangent = pull - float(pull @ along) * mean
        step = length(tangent, cosines)
        if step <= tol:
            break
        mean = np.cos(step) * mean + np.sin(step) / step * tangent
        mean = mean / length(mean, cosines)
    return mean


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, Σk fk·θk, or θ0 + Σk fk·δk with `task_vectors`."""
    if not options["task_vectors"]:
        return steps.weighted_sum(experts, s["weight"])
    return base + steps.weighted_sum(steps.task_vectors(base, experts), s["weight"])
