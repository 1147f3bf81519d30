"""DELLA: drop at random, but keep large elements more often; elect a sign for each element, average what agrees.

θ = θ0 + λ·elect(wk·mk(δk)), where mk keeps an element with probability dk − εk + 2·εk·r, and r in [0, 1] is its
rank by magnitude within its row (the last dimension). Deep et al. 2024, "DELLA-Merging", arXiv 2406.11617, §3
(MAGPRUNE). Ranks are looked up in a table made once per study. They are exact for rows of up to 65 elements and in
64 steps for longer rows. A uniform is a hash of (seed, expert, tensor, element), see `merging.kernels.masks`.

- `weight`, per expert: any number.
- `density`, per expert, in (0, 1]: the mean probability of an element to be kept.
- `epsilon`, per expert, in [0, 0.5]: how far the probability varies with the rank, 0.15 by default. It is lowered
  where density ± epsilon would leave [0, 1].
- `lambda`: scales the whole sum; 1 by default.
- options `rescale` (default true): multiply kept elements by Σ|δ| / Σ p·|δ|, which keeps each tensor's L1 norm in
  expectation (mergekit restores the norm of the elements that its mask happened to keep); `normalize` (default
  true): divide by the weights that took part in each element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import DENSITY, LAMBDA, WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._masks import EPSILON, drop_by_rank

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT, DENSITY, EPSILON, LAMBDA)
OPTIONS = {"normalize": True, "rescale": True}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = True


def scalars(tensor: TensorInputs) -> Scalars:
    """weight: (K,); lambda: (1,); and the scalars of `steps.drop_by_rank`."""
    return {
        "weight": list(tensor.values["weight"]),
        "lambda": list(tensor.values["lambda"]),
        **drop_by_rank(tensor, tensor.values["weight"]),
    }


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·elect(wk·mk(δk))."""
    terms = steps.drop_by_rank(steps.task_vectors(base, experts), s)
    return base + s["lambda"][0] * steps.elect(terms, s["weight"], normalize=options["normalize"])
