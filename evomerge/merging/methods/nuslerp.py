"""Spherical interpolation between two experts, or between their task vectors.

θ = θ0 + sin((1−t)Ω)/sin Ω · δa + sin(tΩ)/sin Ω · δb with t = wb/(wa + wb). The experts a and b are in the order of
their names, and Ω is the angle between δa and δb. With `task_vectors` off, θa and θb take the place of δa and δb,
and θ0 is left out. Where the vectors are parallel, the interpolation is plain. A zero vector counts as orthogonal
to all. Shoemake 1985, "Animating rotation with quaternion curves", §3.3; the form is mergekit's NuSLERP.

- `weight`, per expert: any number; only the proportions matter.
- options `task_vectors` (default true): interpolate task vectors and not weights; `flatten` (default true): take
  one angle for a whole tensor, else one for each vector along the last dimension; `row_wise` (default false):
  without `flatten`, take the vectors along the first dimension. The names are mergekit's.
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
    """factors: those of the two vectors, (2,); without `flatten` (2, rows, 1), or (2, 1, columns) with
    `row_wise`."""
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
    """The merged block, θ0 + s0·δa + s1·δb, or s0·θa + s1·θb without `task_vectors`."""
    vectors = steps.task_vectors(base, experts) if options["task_vectors"] else experts
    merged = vectors[0] * s["factors"][0] + vectors[1] * s["factors"][1]
    return base + merged if options["task_vectors"] else merged
