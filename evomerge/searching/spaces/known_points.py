"""Points of a search space that are looked at first, and the points of other studies as points of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import ConfigError, suggest
from evomerge.models.tensor_names import Place, is_pattern, key_of
from evomerge.searching.spaces.decoding import LaidOut
from evomerge.searching.spaces.faults import needs_weights
from evomerge.searching.spaces.genes import BASE, MIX, OFF, ON, Coordinate, Genome, Switch, initial

TASK_ARITHMETIC = (0.5, 0.75, 1.0)  # λ that a search looks at first, beside the uniform average


def known_points(laid: LaidOut, more: Sequence[Genome] = ()) -> list[Genome]:
    """Genomes worth a look before any search, each once.

    They are the space's `init`, with each method; then, where weights, switches or sources are searched, all
    experts alike (task arithmetic at a few λ, the uniform average among them) and each expert alone; and last the
    base, which is worth a look only for comparison.

    Experts take part or not by their switches and sources, where these can say it, else by weights of 1 and 0.
    Values are the nearest that a gene allows. Other genes stay at their `init`.

    Args:
        more: further points, which come before the base.
    """
    start = initial(laid.coordinates)
    points = [start]
    points += [{**start, **laid.everywhere("method", method)} for method in laid.space.methods[1:]]
    for genome in (*_all_alike(laid, start), *_each_alone(laid, start), *more, *_base(laid, start)):
        if genome not in points:
            points.append(genome)
    return points


def together(laid: LaidOut, method: str) -> Genome | None:
    """The space's `init` with one method for all tensors, in which all experts take part.

    None if a source lets only one of them take part.
    """
    source = laid.space.genes.source
    if source and not source.mix:
        return None
    genome = initial(laid.coordinates) | laid.everywhere("method", method)
    for name, gate in laid.space.gates.items():
        genome |= laid.everywhere(name, ON if isinstance(gate, Switch) else MIX)
    return genome


def _all_alike(laid: LaidOut, start: Genome) -> list[Genome]:
    """All experts taking part, with equal weights; [] if a source lets only one of them."""
    genome = together(laid, laid.space.methods[0])
    if genome is None:
        return []
    if "weight" not in laid.space.numbers:
        return [genome]
    experts = laid.common.experts
    options = laid.decode(start).options[laid.space.methods[0]]
    # Under normalization the common size of the weights does not matter.
    sizes = (1.0,) if options.get("normalize") else (1.0 / len(experts), *TASK_ARITHMETIC)
    return [_weighted(laid, genome, dict.fromkeys(experts, size)) for size in sizes]


def _each_alone(laid: LaidOut, start: Genome) -> list[Genome]:
    """Each expert alone, in the order of their names; [] if nothing tells experts apart."""
    switches, weight = laid.of("switch"), laid.space.numbers.get("weight")
    points = []
    for alone in sorted(laid.common.experts):
        weights = {alone: 1.0}
        if laid.space.genes.source:
            chosen = laid.everywhere("source", alone)
        elif any(point.expert for point in switches):
            chosen = {point.name: ON if point.expert == alone else OFF for point in switches}
        elif weight and "expert" in weight.per:
            chosen = laid.everywhere("switch", ON)
            weights = {expert: float(expert == alone) for expert in laid.common.experts}
        else:
            return []
        points.append(_weighted(laid, {**start, **chosen}, weights))
    return points


def _base(laid: LaidOut, start: Genome) -> list[Genome]:
    """The base, as the genome in which no expert takes part, alone in a list.

    [] where the genes cannot say it, or the methods make something else of weights of 0. Under normalization small
    weights do not come near the base, so there weights of 0 are no point worth a look.
    """
    for method, recipe in zip(laid.space.methods, laid.representatives(), strict=True):
        if "weight" not in recipe.parameters or needs_weights(method):
            continue
        chosen = {**start, **laid.everywhere("method", method)}
        if laid.space.genes.switch:
            return [{**chosen, **laid.everywhere("switch", OFF)}]
        if laid.space.genes.source and laid.space.genes.source.base:
            return [{**chosen, **laid.everywhere("source", BASE)}]
        gene = laid.space.numbers.get("weight")
        if gene and gene.low <= 0.0 <= gene.high and not recipe.options[method].get("normalize"):
            genome = _weighted(laid, chosen, dict.fromkeys(laid.common.experts, 0.0))
            return [genome] if not any(genome[point.name] for point in laid.of("weight")) else []
    return []


def _weighted(laid: LaidOut, genome: Genome, weights: Mapping[str, float]) -> Genome:
    """The genome with some experts' weights, as near as their gene allows; unchanged if weights have no gene.

    A coordinate that holds for all experts takes the first of the weights.
    """
    changed = dict(genome)
    for point in laid.of("weight"):
        expert = point.expert or next(iter(weights))
        if expert in weights:
            changed[point.name] = point.nearest(weights[expert])
    return changed


# --- points that measurements ask for ----------------------------------------------------------------------


@dataclass(frozen=True)
class WantedWeight:
    """The weight that each expert should have in one tensor. elements: how many the tensor has."""

    place: Place
    elements: int
    weight: float


def nearest_weights(laid: LaidOut, genome: Genome, wanted: Sequence[WantedWeight]) -> Genome:
    """The genome with each `weight` coordinate at the mean of the weights wanted where it reaches, by elements.

    Between anchors a tensor counts for both, as much as each has of its value. Means are rounded to four decimals,
    so that another machine's last bits make no other genome. A coordinate that reaches no tensor is unchanged.
    """
    patterns = [row for row in laid.decode(genome).parameters["weight"] if is_pattern(row)]
    elements: dict[str, dict[str, list[float]]] = {}
    amounts: dict[str, dict[str, list[float]]] = {}
    for wish in wanted:
        row = key_of(patterns, wish.place) or wish.place.module
        for table, amount in ((elements, wish.elements), (amounts, wish.elements * wish.weight)):
            columns = table.setdefault(row, {name: [0.0] * laid.common.layers for name in laid.common.experts})
            for column in columns.values():
                column[wish.place.layer] += amount
    counts = laid.pull_back(genome, {"weight": elements})
    sums = laid.pull_back(genome, {"weight": amounts})
    points = {point.name: point for point in laid.of("weight")}
    means = {name: sums[name] / count for name, count in counts.items() if count}
    return {**genome, **{name: points[name].nearest(round(mean, 4)) for name, mean in means.items()}}


# --- points that an experiment names -----------------------------------------------------------------------


def resolve(
    points: Sequence[Coordinate], starts: Sequence[str | Genome], earlier: Mapping[str, Genome]
) -> tuple[Genome, ...]:
    """Each of an experiment's `starts` as a whole genome; one that is whole already is unchanged.

    Args:
        points: the coordinates of the space.
        starts: folders of earlier studies, and genomes, whose missing coordinates are set to their `init`.
        earlier: path -> the best genome of the study there.

    Raises:
        ConfigError: a study shares no coordinate with the space, or a genome does not fit it; with all faults.
    """
    genomes, faults = [], []
    for number, start in enumerate(starts):
        if isinstance(start, str):
            shared = carried(points, earlier[start])
            if not shared:
                faults.append(f"{start} searched another space: none of its coordinates is in this one")
        else:
            shared = start
            faults += [f"{number}.{fault}" for fault in _faults(points, start)]
        genomes.append({**initial(points), **shared})
    if faults:
        raise ConfigError("starts", faults)
    return tuple(genomes)


def carried(points: Sequence[Coordinate], genome: Genome) -> Genome:
    """The part of a genome of another space that these coordinates can take: under equal names the nearest values
    that they allow. A category that a coordinate does not have is left out."""
    shared: Genome = {}
    for point in points:
        value = genome.get(point.name)
        if isinstance(value, str):
            if value in point.choices:
                shared[point.name] = value
        elif value is not None and not point.choices:
            shared[point.name] = point.nearest(value)
    return shared


def _faults(points: Sequence[Coordinate], genome: Genome) -> list[str]:
    """What is wrong with a genome as a point of the space; coordinates may be missing."""
    known = {point.name: point for point in points}
    faults = [
        f"{name}: is no coordinate of the space.{suggest(name, known)}" for name in genome if name not in known
    ]
    for name, value in genome.items():
        if name in known and carried([known[name]], genome) != {name: value}:
            faults.append(f"{name}: must be {_allowed(known[name])}, but is {value}")
    return faults


def _allowed(point: Coordinate) -> str:
    """The values that a coordinate may have, as a sentence says it."""
    if point.choices:
        return f"one of {', '.join(point.choices)}"
    steps = f", in steps of {point.step:g} from {point.low:g}" if point.step else ""
    return f"a number in [{point.low:g}, {point.high:g}]{steps}"
