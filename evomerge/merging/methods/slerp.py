"""Spherical interpolation between the base and one expert.

θ = sin((1−t)Ω)/sin Ω · θ0 + sin(tΩ)/sin Ω · θ1, where Ω is the angle between the two tensors seen as vectors. Where
they are nearly parallel, the interpolation is plain. A zero tensor counts as orthogonal to all, as in mergekit.
Shoemake 1985, "Animating rotation with quaternion curves", §3.3. The angles are computed once per study.

- `t`, in [0, 1]: 0 is the base, 1 the expert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.methods import Scalars, TensorInputs
from evomerge.recipes.parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = (Parameter("t", low=0.0, high=1.0),)
OPTIONS: dict[str, bool] = {}
EXPERTS = (1, 1)
NEEDS_ELEMENT_NUMBERS = False

PARALLEL = 0.9995  # |cos Ω| above which sin Ω is too small to divide by; mergekit's value


def scalars(tensor: TensorInputs) -> Scalars:
    """base, expert: the factors s0 and s1, (1,) each."""
    (t,) = tensor.values["t"]
    (tt, td), (_, dd) = tensor.table("gram", tensor.experts).dots.tolist()
    norms = math.sqrt(tt * max(tt + 2.0 * td + dd, 0.0))
    cosine = min(max((tt + td) / norms, -1.0), 1.0) if norms else 0.0
    if abs(cosine) > PARALLEL:
        return {"base": [1.0 - t], "expert": [t]}
    angle = math.acos(cosine)
    return {
        "base": [math.sin((1.0 - t) * angle) / math.sin(angle)],
        "expert": [math.sin(t * angle) / math.sin(angle)],
    }


def merge(base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool]) -> Tensor:
    """The merged block, s0·θ0 + s1·θ1."""
    return base * s["base"][0] + experts[0] * s["expert"][0]
