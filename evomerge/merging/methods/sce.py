"""SCE: select the elements on which the experts differ most, calculate their weights, erase what disagrees.

θ = θ0 + λ·Σk ηk·δk / Σk ηk, for the fraction of elements that have the greatest variance over the experts. The sums
are over those experts whose δk has the sign of the sum over all experts. ηk = Σδk²/ΣkΣδk² over the selected
elements. Wan et al. 2024, "FuseChat", arXiv 2408.07990, §3.3. The threshold and the sums are looked up in a table
made once per study. Elements that tie with the threshold are all kept. mergekit makes all ηk equal where Σk
mean(δk²) is below 10⁻⁶, as for most fine-tunes; here the ηk are the paper's.

- `select_topk`, in (0, 1]: the fraction of elements selected, among those on which the experts differ; 1 by
  default, which selects all elements.
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

PARAMETERS = (Parameter("select_topk", low=0.0, high=1.0, open_low=True, default=1.0, selects=True), LAMBDA)
OPTIONS: dict[str, bool] = {}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """weight: ηk, (K,); threshold, lambda: (1,)."""
    threshold, squares = tensor.table("variance", tensor.experts).most(tensor.values["select_topk"][0])
    total = sum(squares)
    weights = [square / total if total > 0.0 else 1.0 / len(squares) for square in squares]
    return {"weight": weights, "threshold": [threshold], "lambda": list(tensor.values["lambda"])}


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·elect(ηk·select(δk)); the plain sum of select(δk) elects the sign."""
    deltas = steps.task_vectors(base, experts)
    selected = steps.variance(deltas) >= s["threshold"][0]
    deltas = [delta.where(selected, 0.0) for delta in deltas]
    terms = [delta * s["weight"][k] for k, delta in enumerate(deltas)]
    merged = steps.elect(terms, s["weight"], normalize=True, vote=steps.total(deltas))
    return base + s["lambda"][0] * merged
