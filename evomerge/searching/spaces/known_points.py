"""Points of a search space that are looked at first, and the points of other studies as points of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from evomerge.errors import ConfigError, suggest
from evomerge.models.tensor_names import Place, is_pattern, key_of
from evomerge.searching.spaces.decoding import (
    CommonRecipe,
    axis_keys,
    coordinate_name,
    coordinate_names,
    coordinates,
    decode,
    method_genes,
    pull_back,
    representatives,
)
from evomerge.searching.spaces.genes import Coordinate, Genome, initial
from evomerge.searching.spaces.space import BASE, MIX, OFF, ON, SearchSpace, Switch, needs_weights

TASK_ARITHMETIC = (0.5, 0.75, 1.0)  # λ that a search looks at first, beside the uniform average


def known_points(space: SearchSpace, frame: CommonRecipe, more: Sequence[Genome] = ()) -> list[Genome]:
    """Genomes worth a look before any search, distinct: the space's `init`, with each method; where weights are
    searched, or switches or sources, all experts alike (task arithmetic at a few λ, the uniform average among them)
    and each expert alone; and last, as it is good only in comparison, the base.

    Experts are on or off by their switches and sources, where these can say it, else by weights of 1 and 0. Values
    are the nearest that a gene allows. Other genes stay at their `init`.

    Args:
        more: further points, which come before the base.
    """
    start = initial(coordinates(space, frame))
    found = [start]
    found += [{**start, **dict.fromkeys(method_genes(space), method)} for method in space.methods[1:]]
    others = (*_all_alike(space, frame, start), *_each_alone(space, frame, start), *more)
    for genome in (*others, *_none(space, frame, start)):
        if genome not in found:
            found.append(genome)
    return found


def together(space: SearchSpace, frame: CommonRecipe, method: str) -> Genome | None:
    """The space's `init` with one method for all tensors, and all experts taking part in it; None if a source lets
    only one of them."""
    if space.genes.source and not space.genes.source.mix:
        return None
    found = initial(coordinates(space, frame)) | dict.fromkeys(method_genes(space), method)
    for name, gate in space.genes.gates.items():
        found |= dict.fromkeys(coordinate_names(space, frame, name, gate), ON if isinstance(gate, Switch) else MIX)
    return found


def _all_alike(space: SearchSpace, frame: CommonRecipe, start: Genome) -> list[Genome]:
    """All experts taking part, with equal weights; none if a source lets only one of them."""
    genome = together(space, frame, space.methods[0])
    if genome is None:
        return []
    if "weight" not in space.numbers:
        return [genome]
    options = decode(space, frame, start).options[space.methods[0]]
    # Under normalization the common size of the weights does not matter.
    sizes = (1.0,) if options.get("normalize") else (1.0 / len(frame.experts), *TASK_ARITHMETIC)
    return [_weighted(space, frame, genome, dict.fromkeys(frame.experts, size)) for size in sizes]


def _each_alone(space: SearchSpace, frame: CommonRecipe, start: Genome) -> list[Genome]:
    """Each expert alone, in the order of their names; none if nothing tells experts apart."""
    switch, source, weight = space.genes.switch, space.genes.source, space.numbers.get("weight")
    switches = list(product(*axis_keys(space, switch, frame))) if switch else []
    found = []
    for alone in sorted(frame.experts):
        weights, chosen = {alone: 1.0}, {}
        if source:
            chosen = dict.fromkeys(coordinate_names(space, frame, "source", source), alone)
        elif switch and "expert" in switch.per:
            chosen = {coordinate_name("switch", key): ON if key[-1] == alone else OFF for key in switches}
        elif weight and "expert" in weight.per:
            chosen = {coordinate_name("switch", key): ON for key in switches}
            weights = {expert: float(expert == alone) for expert in frame.experts}
        else:
            return []
        found.append(_weighted(space, frame, {**start, **chosen}, weights))
    return found


def _none(space: SearchSpace, frame: CommonRecipe, start: Genome) -> list[Genome]:
    """No expert taking part, which leaves the base; none where the genes cannot say it, or the methods make
    something else of it. Under normalization weights of 0 are the limit of no small ones: near them is no base.
    """
    for method, recipe in zip(space.methods, representatives(space, frame), strict=True):
        if "weight" not in recipe.parameters or needs_weights(method):
            continue
        chosen = {**start, **dict.fromkeys(method_genes(space), method)}
        if switch := space.genes.switch:
            return [{**chosen, **dict.fromkeys(coordinate_names(space, frame, "switch", switch), OFF)}]
        if (source := space.genes.source) and source.base:
            return [{**chosen, **dict.fromkeys(coordinate_names(space, frame, "source", source), BASE)}]
        gene = space.numbers.get("weight")
        if gene and gene.low <= 0.0 <= gene.high and not recipe.options[method].get("normalize"):
            genome = _weighted(space, frame, chosen, dict.fromkeys(frame.experts, 0.0))
            return (
                [genome] if not any(genome[name] for name in coordinate_names(space, frame, "weight", gene)) else []
            )
    return []


@dataclass(frozen=True)
class WantedWeight:
    """The weight that each expert should have in one tensor. elements: how many the tensor has."""

    place: Place
    elements: int
    weight: float


def nearest_weights(
    space: SearchSpace, frame: CommonRecipe, genome: Genome, wishes: Sequence[WantedWeight]
) -> Genome:
    """The genome with each `weight` coordinate at the mean of what is wished for where it reaches, by elements.

    Between anchors a tensor counts for both, as much as each has of its value. Means are rounded to four decimals,
    so that another machine's last bits make no other genome. A coordinate that reaches no tensor stays as it is.
    """
    patterns = [row for row in decode(space, frame, genome).parameters["weight"] if is_pattern(row)]
    elements: dict[str, dict[str, list[float]]] = {}
    wished: dict[str, dict[str, list[float]]] = {}
    for wish in wishes:
        row = key_of(patterns, wish.place) or wish.place.module
        for table, amount in ((elements, wish.elements), (wished, wish.elements * wish.weight)):
            columns = table.setdefault(row, {name: [0.0] * frame.layers for name in frame.experts})
            for column in columns.values():
                column[wish.place.layer] += amount
    counts = pull_back(space, frame, genome, {"weight": elements})
    sums = pull_back(space, frame, genome, {"weight": wished})
    points = {point.name: point for point in coordinates(space, frame)}
    means = {name: sums[name] / count for name, count in counts.items() if count}
    return {**genome, **{name: points[name].nearest(round(mean, 4)) for name, mean in means.items()}}


def _weighted(space: SearchSpace, frame: CommonRecipe, genome: Genome, weights: Mapping[str, float]) -> Genome:
    """The genome with some experts' weights, as near as their genes allow; as it is if weights have no gene."""
    gene = space.numbers.get("weight")
    if gene is None:
        return genome
    points = {point.name: point for point in coordinates(space, frame)}
    found = dict(genome)
    for key in product(*axis_keys(space, gene, frame)):
        expert = key[-1] if "expert" in gene.per else next(iter(weights))
        if expert in weights:
            name = coordinate_name("weight", key)
            found[name] = points[name].nearest(weights[expert])
    return found


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
