"""DELLA's drop with task arithmetic: keep large elements more often, add up what is kept.

θ = θ0 + λ·Σk wk·mk(δk), where mk keeps an element with probability dk − εk + 2·εk·r, and r in [0, 1] is its rank by
magnitude within its row (the last dimension). Deep et al. 2024, "DELLA-Merging", arXiv 2406.11617, §3 (MAGPRUNE).
Ranks and uniforms are those of `della`.

- `weight`, per expert: any number.
- `density`, per expert, in (0, 1]: the mean probability of an element to be kept.
- `epsilon`, per expert, in [0, 0.5]: how far the probability varies with the rank, 0.15 by default. It is lowered
  where density ± epsilon would leave [0, 1].
- `lambda`: scales the whole sum; 1 by default.
- options `rescale` (default true): multiply kept elements by Σ|δ| / Σ p·|δ|, which keeps each tensor's L1 norm in
  expectation (mergekit restores the norm of the elements that its mask happened to keep); `normalize` (default
  false): divide the sum by Σk wk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import DENSITY, LAMBDA, WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._masks import EPSILON, drop_by_rank
from evomerge.merging.methods._weights import scaled_weights

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT, DENSITY, EPSILON, LAMBDA)
OPTIONS = {"normalize": False, "rescale": True}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = True


def scalars(tensor: TensorInputs) -> Scalars:
    """The scalars of `steps.drop_by_rank`; their factors hold wk, λ and the normalization."""
    return drop_by_rank(tensor, scaled_weights(tensor))


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·Σk wk·mk(δk)."""
    return base + steps.total(steps.drop_by_rank(steps.task_vectors(base, experts), s))
