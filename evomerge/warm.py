"""Warm starts: points to look at first that take more than the search space to find.

The points of earlier studies, as far as they fit; and model stock's, from the angles between the experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from evomerge import candidate, kernels, plugins, tensors
from evomerge.candidate import Progress, Setup
from evomerge.errors import ConfigError, suggest
from evomerge.genes import Coordinate, Genome, initial
from evomerge.methods import TensorInputs
from evomerge.space import Frame, SearchSpace, Wish, decode, nearest_weights, together
from evomerge.statistics import Statistics
from evomerge.tables import KINDS

# --- points that an experiment names -----------------------------------------------------------------------


def resolve(
    points: Sequence[Coordinate], starts: Sequence[str | Genome], earlier: Mapping[str, Genome]
) -> tuple[Genome, ...]:
    """Each of an experiment's `starts` as a whole genome. Of what is whole already, the same.

    Args:
        points: the coordinates of the space.
        earlier: path -> the best genome of the study there.

    Raises:
        ConfigError: a study shares no coordinate with the space, or a genome does not fit it; with all faults.
    """
    found, faults = [], []
    for number, start in enumerate(starts):
        if isinstance(start, str):
            shared = carried(points, earlier[start])
            if not shared:
                faults.append(f"{start} searched another space: none of its coordinates is in this one")
        else:
            shared = start
            faults += [f"{number}.{fault}" for fault in _faults(points, start)]
        found.append({**initial(points), **shared})
    if faults:
        raise ConfigError("starts", faults)
    return tuple(found)


def carried(points: Sequence[Coordinate], genome: Genome) -> Genome:
    """What a genome of some space says of the coordinates of another: of the same names, the nearest values that
    they may have. A choice that is none of theirs says nothing."""
    found: Genome = {}
    for point in points:
        value = genome.get(point.name)
        if isinstance(value, str):
            if value in point.choices:
                found[point.name] = value
        elif value is not None and not point.choices:
            found[point.name] = point.nearest(value)
    return found


def _faults(points: Sequence[Coordinate], genome: Genome) -> list[str]:
    """What makes a genome no point of a space; coordinates may be missing."""
    known = {point.name: point for point in points}
    found = [
        f"{name}: is no coordinate of the space.{suggest(name, known)}" for name in genome if name not in known
    ]
    for name, value in genome.items():
        if name in known and carried([known[name]], genome) != {name: value}:
            found.append(f"{name}: must be {_allowed(known[name])}, but is {value}")
    return found


def _allowed(point: Coordinate) -> str:
    if point.choices:
        return f"one of {', '.join(point.choices)}"
    steps = f", in steps of {point.step:g} from {point.low:g}" if point.step else ""
    return f"a number in [{point.low:g}, {point.high:g}]{steps}"


# --- model stock -------------------------------------------------------------------------------------------


def model_stock(
    setup: Setup, space: SearchSpace, frame: Frame, names: Sequence[str], progress: Progress = lambda text: None
) -> Genome | None:
    """Model stock's step from the base towards the experts' average, as weights of task vectors.

    Jang et al. 2024, "Model stock", arXiv 2403.19522, eq. 7: a tensor of K experts goes t of the way to their
    average, t from the mean cosine between their task vectors; as a sum of task vectors that is t/K of each. A
    coordinate gets the mean of t/(K·λ) over the elements of the tensors that it reaches, t clipped to [0, 1].
    Tensors that no expert changes have no angle and are left out.

    A function of the checkpoints alone. The angles' table lies in the setup's cache with those of the methods, and
    is made once.

    Args:
        names: the live model's parameters.
        progress: told when angles are to be measured.

    Returns:
        The genome; None where the space does not search weights of two experts or more by a method that adds up.

    Raises:
        CheckpointError: a tensor has values that are not finite.
        StudyError: the cache cannot be written.
    """
    if "weight" not in space.numbers or len(frame.experts) < 2:
        return None
    for method in space.methods:
        genome = together(space, frame, method)
        if genome is not None and adds_up(method, decode(space, frame, genome).options[method]):
            return nearest_weights(space, frame, genome, _wishes(setup, space, frame, genome, names, progress))
    return None


def _wishes(
    setup: Setup, space: SearchSpace, frame: Frame, genome: Genome, names: Sequence[str], progress: Progress
) -> list[Wish]:
    """Model stock's weight of each tensor, beside the λ that a genome has there."""
    base, experts = candidate.open_inputs(setup)
    recipe = decode(space, frame, genome)
    stock = plugins.load("methods", "model_stock")
    statistics = Statistics(
        base, experts, names, Path(setup.cache), lambda text: progress("measuring angles for a warm start")
    )
    found = []
    for place in tensors.places(names).values():
        inputs = TensorInputs(
            name=place.name,
            experts=tuple(recipe.experts),
            values={"lambda": (1.0,)},
            options=stock.OPTIONS,
            seed=frame.seed,
            table=lambda kind, which, name=place.name: statistics.table(kind, which, name),  # type: ignore[misc]
        )
        (share,) = stock.scalars(inputs)["step"]  # t/K
        factor = recipe.coefficients(place)["lambda"][0]
        changed = bool(inputs.table("gram", inputs.experts).dots[1:, 1:].any())
        if factor and changed:
            clipped = min(max(share, 0.0), 1.0 / len(inputs.experts))
            found.append(Wish(place, math.prod(base.shapes[place.name]), clipped / factor))
    return found


_KEEP_ALL = {"lambda": 1.0, "density": 1.0, "gamma": 0.0, "epsilon": 0.0}


def adds_up(method: str, options: Mapping[str, bool]) -> bool:
    """Whether a method makes θ0 + Σk wk·δk where it keeps all elements: asked of it, on a few of opposed signs.

    >>> adds_up("task_arithmetic", {"normalize": False}), adds_up("task_arithmetic", {"normalize": True})
    (True, False)
    """
    module = plugins.load("methods", method)
    if not {"weight", "lambda"} <= {parameter.name for parameter in module.PARAMETERS}:
        return False
    base = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    deltas = {"a": torch.tensor([[1.0, 2.0], [-3.0, 4.0]]), "b": torch.tensor([[3.0, -1.0], [2.0, 1.0]])}
    weights = {"a": 0.25, "b": 0.5}
    experts = {name: base + delta for name, delta in deltas.items()}
    values = {
        one.name: (_KEEP_ALL.get(one.name, one.default),) * (2 if one.per_expert else 1)
        for one in module.PARAMETERS
    }
    inputs = TensorInputs(
        name="",
        experts=("a", "b"),
        values={**values, "weight": tuple(weights.values())},
        options=options,
        seed=0,
        table=lambda kind, which: KINDS[kind].of(base, [experts[name] for name in which]),
    )
    merged = torch.empty_like(base)
    kernels.run(module, options, merged, base, list(experts.values()), module.scalars(inputs), compiled=False)
    return torch.allclose(merged, base + sum(weights[name] * delta for name, delta in deltas.items()))
