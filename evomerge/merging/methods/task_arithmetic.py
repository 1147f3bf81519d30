"""Task arithmetic: add weighted task vectors to the base.

θ = θ0 + λ·Σk wk·(θk − θ0). Ilharco et al. 2023, "Editing models with task arithmetic", arXiv 2212.04089, §2.

- `weight`, per expert: any number; negative weights unlearn.
- `lambda`: scales the whole sum; 1 by default.
- option `normalize` (default false): divide the sum by Σk wk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import LAMBDA, WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._weights import scaled_weights

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT, LAMBDA)
OPTIONS = {"normalize": False}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """weight: λ·wk with the normalization in it, (K,)."""
    return {"weight": scaled_weights(tensor)}


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·Σk wk·δk."""
    return base + steps.weighted_sum(steps.task_vectors(base, experts), s["weight"])
