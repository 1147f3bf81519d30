"""Model stock's step as weights of task vectors, and the merge methods that such weights can be given to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from evomerge.merging import methods
from evomerge.merging.kernels import passes
from evomerge.merging.kernels.tables import KINDS
from evomerge.merging.methods import TensorInputs
from evomerge.merging.table_store import Statistics


def task_vector_weights(
    names: Sequence[str], experts: Sequence[str], statistics: Statistics
) -> Iterator[tuple[str, float]]:
    """(tensor, weight): model stock's weight of each task vector, the same for all experts of a tensor.

    Jang et al. 2024, "Model stock", arXiv 2403.19522, eq. 7: a tensor of K experts goes t of the way to their
    average, that is, each task vector is added with the weight t/K. t is clipped to [0, 1]. Tensors that no expert
    changes have no angle and are left out.

    Raises:
        CheckpointError: a tensor has values that are not finite.
        StudyError: the tables' cache cannot be written.
    """
    stock = methods.load("model_stock")
    for name in names:
        inputs = TensorInputs(
            name=name,
            experts=tuple(experts),
            values={"lambda": (1.0,)},
            options=stock.OPTIONS,
            seed=0,  # no mask is drawn
            table=lambda kind, which, name=name: statistics.table(kind, which, name),  # type: ignore[misc]
        )
        step = stock.scalars(inputs)["step"]
        assert isinstance(step, list)
        if inputs.table("gram", inputs.experts).dots[1:, 1:].any():
            yield name, min(max(step[0], 0.0), 1.0 / len(experts))


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
