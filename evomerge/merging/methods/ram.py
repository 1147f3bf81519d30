"""RAM: keep a change that only one expert made whole, and average those that several made.

θ = θ0 + λ·Σk [|δk| > ε]·δk / max(1, number of experts with |δk| > ε). "Reinforced agent merging", arXiv 2601.13572.

- `epsilon`, at least 0: an element changed if it moved farther than this; 10⁻⁵ by default.
- `lambda`: scales the whole sum; 1 by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import LAMBDA, Scalars, TensorInputs
from evomerge.recipes.parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (Parameter("epsilon", low=0.0, default=1e-5, selects=True), LAMBDA)
OPTIONS: dict[str, bool] = {}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """The scalars epsilon and lambda, (1,) each."""
    return {"epsilon": list(tensor.values["epsilon"]), "lambda": list(tensor.values["lambda"])}


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·Σk changed(δk) / count."""
    deltas = steps.task_vectors(base, experts)
    changed = [delta.abs() > s["epsilon"][0] for delta in deltas]
    count = steps.total([one.to(base.dtype) for one in changed]).clamp(min=1.0)
    kept = [delta.where(one, 0.0) for one, delta in zip(changed, deltas, strict=True)]
    return base + s["lambda"][0] * (steps.total(kept) / count)
