"""Arcee Fusion: take over only those of an expert's changes that stand out.

θ = θ0 + λ·[i ≥ c]·δ. An element's importance is i = |δ|·KL(softmax(θ1 row) ‖ softmax(θ0 row)), where a row is the
last dimension. The cut c lies 1.5 interquartile ranges above the median importance of the tensor. The formula is
that of mergekit's `arcee_fusion`, but the quartiles are those of all elements, where mergekit samples large
tensors. The divergences and the cut are computed once per study.

- `lambda`: scales the changes; 1 by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import steps
from evomerge.merging.methods import LAMBDA, ByRow, Scalars, TensorInputs

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (LAMBDA,)
OPTIONS: dict[str, bool] = {}
EXPERTS = (1, 1)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """divergence: (1, rows, 1), the KL of each row; threshold, lambda: (1,)."""
    table = tensor.table("importance", tensor.experts)
    return {
        "divergence": ByRow(table.divergence[None, :, None]),
        "threshold": table.threshold.tolist(),
        "lambda": list(tensor.values["lambda"]),
    }


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + λ·[i ≥ c]·δ."""
    (delta,) = steps.task_vectors(base, experts)
    stands_out = delta.abs() * s["divergence"][0] >= s["threshold"][0]
    return base + s["lambda"][0] * delta.where(stands_out, 0.0)
