"""Model Stock: go from the base towards the experts' average, as far as the angle between their task vectors says.

θ = θ0 + λ·t·(mean of θk − θ0), t = K·c/(1 + (K−1)·c), where c is the mean of the cosines between two experts' task
vectors. Jang et al. 2024, "Model stock", arXiv 2403.19522, eq. 7. The angles are computed once per study.

- `lambda`: scales the step; 1, the paper's, by default.
- option `filter_wise` (default false): take an angle for each row (the last dimension) and not one for the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merging.kernels.steps import task_vectors, total
from evomerge.merging.methods import LAMBDA, ByRow, Scalars, TensorInputs
from evomerge.merging.methods._angles import cosines

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (LAMBDA,)
OPTIONS = {"filter_wise": False}
EXPERTS = (2, None)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """step: λ·t/K, (1,), or (1, rows, 1) with `filter_wise`."""
    kind = "row_gram" if tensor.options["filter_wise"] else "gram"
    gram = tensor.table(kind, tensor.experts).dots
    count = len(tensor.experts)
    dots = gram.reshape(-1, count + 1, count + 1)[:, 1:, 1:]
    between = cosines(dots)[:, *np.triu_indices(count, 1)].mean(axis=1)
    divisor = 1.0 + (count - 1) * between
    singular = np.abs(divisor) < 1e-6  # opposed task vectors: there is no finite step
    ratio = np.where(singular, 0.0, between / np.where(singular, 1.0, divisor))
    steps = tensor.values["lambda"][0] * ratio
    return {"step": ByRow(steps[None, :, None]) if tensor.options["filter_wise"] else steps.tolist()}


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, θ0 + (λ·t/K)·Σk δk."""
    return base + s["step"][0] * total(task_vectors(base, experts))
