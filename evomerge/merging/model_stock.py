"""Which merge methods add weighted task vectors up, so that model stock's step can be said in their weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from evomerge.merging import methods
from evomerge.merging.kernels import passes
from evomerge.merging.kernels.tables import KINDS
from evomerge.merging.methods import TensorInputs

_KEEP_ALL = {"lambda": 1.0, "density": 1.0, "gamma": 0.0, "epsilon": 0.0}  # values with which no element is dropped


def adds_up(method: str, options: Mapping[str, bool]) -> bool:
    """Whether a method makes θ0 + Σk wk·δk where it keeps all elements. It is tried on a few of opposed signs.

    >>> adds_up("task_arithmetic", {"normalize": False}), adds_up("task_arithmetic", {"normalize": True})
    (True, False)
    """
    module = methods.load(method)
    if not {"weight", "lambda"} <= {parameter.name for parameter in module.PARAMETERS}:
        return False
    base = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    deltas = {"a": torch.tensor([[1.0, 2.0], [-3.0, 4.0]]), "b": torch.tensor([[3.0, -1.0], [2.0, 1.0]])}
    weights = {"a": 0.25, "b": 0.5}
    experts = {name: base + delta for name, delta in deltas.items()}
    values = {"weight": tuple(weights.values())}
    for one in module.PARAMETERS:
        value = _KEEP_ALL.get(one.name, one.default)
        if one.name != "weight" and value is not None:
            values[one.name] = (value,) * (2 if one.per_expert else 1)
    inputs = TensorInputs(
        name="",
        experts=("a", "b"),
        values=values,
        options=options,
        seed=0,
        table=lambda kind, which: KINDS[kind].of(base, [experts[name] for name in which]),
    )
    merged = torch.empty_like(base)
    passes.run(module, options, merged, base, list(experts.values()), module.scalars(inputs), compiled=False)
    return torch.allclose(merged, base + sum(weights[name] * delta for name, delta in deltas.items()))
