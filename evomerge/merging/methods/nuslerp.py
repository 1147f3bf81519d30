"""Spherical interpolation between two experts, or between their task vectors.

θ = θ0 + sin((1−t)Ω)/sin Ω · δa + sin(tΩ)/sin Ω · δb with t = wb/(wa + wb), experts in the order of their names
and Ω the angle between δa and δb; with `task_vectors` off the same between θa and θb, without the base. Plain
interpolation where they are parallel; a zero vector counts as orthogonal to all. Shoemake 1985, "Animating
rotation with quaternion curves", §3.3; the form is mergekit's NuSLERP.

- `weight`, per expert: any number; only the proportions matter.
- options `task_vectors` (default true); `flatten` (default true): one angle for a whole tensor; else one for
  each vector along the last dimension, or along the first with `row_wise` (default false; the names are
  mergekit's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merging.kernels import steps
from evomerge.merging.methods import WEIGHT, ByColumn, ByRow, Scalars, TensorInputs
from evomerge.merging.methods._angles import arc, cosines, dots_of

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (WEIGHT,)
OPTIONS = {"task_vectors": True, "flatten": True, "row_wise": False}
EXPERTS = (2, 2)
NEEDS_ELEMENT_NUMBERS = False


def scalars(tensor: TensorInputs) -> Scalars:
    """factors: both factors, (2,), or of each vector of the tensor."""
    first, second = tensor.values["weight"]
    share = second / (first + second) if abs(first + second) >= 1e-6 else 0.5
    kind = "gram" if tensor.options["flatten"] else "column_gram" if tensor.options["row_wise"] else "row_gram"
    gram = tensor.table(kind, tensor.experts).dots.reshape(-1, 3, 3)
    dots = dots_of(gram, task_vectors=tensor.options["task_vectors"])
    factors = np.stack(arc(share, cosines(dots)[:, 0, 1]))
    if tensor.options["flatten"]:
        return {"factors": factors[:, 0].tolist()}
    return {"factors": ByColumn(factors[:, None, :]) if tensor.options["row_wise"] else ByRow(factors[:, :, None])}


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """s0·δa + s1·δb, over θ0."""
    vectors = steps.task_vectors(base, experts) if options["task_vectors"] else experts
    merged = vectors[0] * s["factors"][0] + vectors[1] * s["factors"][1]
    return base + merged if options["task_vectors"] else merged
