"""TIES: trim each task vector to its largest elements, elect a sign for each element, average what agrees.

θ = θ0 + λ·elect(wk·trim(δk, dk)), where trim keeps the fraction dk of elements with the largest |δk|. Yadav et al.
2023, "TIES-merging", arXiv 2306.01708, §3. The trim's threshold is looked up in a table made once per study.
Elements whose magnitude ties with the threshold are all kept, where a sort keeps an arbitrary few of them.

- `weight`, per expert: any number.
- `density`, per expert, in (0, 1]: the fraction of elements kept.
- `lambda`: scales the whole sum; 1 by default.
- options `normalize` (default true): divide by the weights that took part in each element; `rescale` (default
  false): restore the L1 norm that the task vector had before it was trimmed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import DENSITY, LAMBDA, WEIGHT, Scalars, TensorInputs
from evomerge.merging.methods._masks import trimmed

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT, DENSITY, LAMBDA)
OPTIONS = {"normalize": True, "rescale": False}
EXPERTS = (1, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """weight: (K,); lambda: (1,); and the scalars of `steps.trim`."""
    return {
        "weight": list(tensor.values["weight"]),
        "lambda": list(tensor.values["lambda"]),
        **trimmed(tensor, tensor.values["weight"]),
    }


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·elect(wk·trim(δk, dk))."""
    terms = steps.trim(steps.task_vectors(base, experts), s)
    return base + s["lambda"][0] * steps.elect(terms, s["weight"], normalize=options["normalize"])
