"""How a genome decodes to a recipe: coordinates laid over depth, modules and experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from evomerge.errors import ConfigError
from evomerge.models.source import Dtype, Source, Vocabulary
from evomerge.models.tensor_names import MODULES, is_pattern
from evomerge.recipes.canonical import ANY, Table, Values, expert_faults, shared_parameters
from evomerge.recipes.recipe import Recipe
from evomerge.searching.spaces.genes import Coordinate, Gene, initial
from evomerge.searching.spaces.operator_genes import Operator
from evomerge.searching.spaces.space import BASE, MIX, OFF, ON, SearchSpace, SourceGene, Switch


@dataclass(frozen=True)
class CommonRecipe:
    """What a space is laid over: the models and all that holds for every candidate."""

    base: Source
    experts: Mapping[str, Source]
    layers: int
    dtype: Dtype
    seed: int
    operators: tuple[Operator, ...] = ()
    vocabulary: Vocabulary | None = None


def coordinates(space: SearchSpace, frame: CommonRecipe) -> list[Coordinate]:
    """The genome's coordinates, in a fixed order.

    Raises:
        ConfigError: the space does not fit the model or the experts.
    """
    _check_fit(space, frame)
    found = [Coordinate(name, 0.0, 1.0, space.methods[0], False, space.methods) for name in method_genes(space)]
    for name, gate in space.genes.gates.items():
        choices, first = _choices(gate, frame)
        found += [
            Coordinate(one, 0.0, 1.0, first, False, choices) for one in coordinate_names(space, frame, name, gate)
        ]
    for name, gene in space.numbers.items():
        init = (gene.low + gene.high) / 2 if gene.init is None else gene.init
        point = Coordinate(name, gene.low, gene.high, init, gene.scale == "log", step=gene.step)
        point = replace(point, init=point.nearest(init))
        found += [replace(point, name=one) for one in coordinate_names(space, frame, name, gene)]
    return found + [point for operator in frame.operators for point in operator.coordinates()]


def _choices(gate: Switch | SourceGene, frame: CommonRecipe) -> tuple[tuple[str, ...], str]:
    """What a switch or a source may be, and what it is at first."""
    if isinstance(gate, Switch):
        return (ON, OFF), gate.init
    choices = (*sorted(frame.experts), *[BASE] * gate.base, *[MIX] * gate.mix)
    return choices, MIX if gate.mix else choices[0]


def coordinate_names(
    space: SearchSpace, frame: CommonRecipe, name: str, gene: Gene | Switch | SourceGene
) -> list[str]:
    """The names of a gene's coordinates."""
    return [coordinate_name(name, key) for key in product(*axis_keys(space, gene, frame))]


def _check_fit(space: SearchSpace, frame: CommonRecipe) -> None:
    faults = []
    groups = space.layers.groups
    if isinstance(groups, int) and groups > frame.layers:
        faults.append(f"layers.groups: is {groups}, but the model has {frame.layers} layers")
    if (space.layers.anchors or 0) > frame.layers:
        faults.append(f"layers.anchors: is {space.layers.anchors}, but the model has {frame.layers} layers")
    for method in space.methods:
        faults += expert_faults(method, len(frame.experts))
    if source := space.genes.source:
        faults += [
            f"experts.{name}: is what a source may be besides an expert; name the expert otherwise"
            for name in (BASE, MIX)
            if name in frame.experts
        ]
        if len(_choices(source, frame)[0]) < 2:
            faults.append(
                "genes.source: there is but one expert to choose; give it `base: true`, or another expert"
            )
    if faults:
        raise ConfigError("space", faults)


def method_genes(space: SearchSpace) -> dict[str, str]:
    """Coordinate name -> the module group or pattern whose method it is, ANY for all."""
    if isinstance(space.method, str):
        return {}
    if not space.method.per:
        return {"method": ANY}
    return {coordinate_name("method", [module]): _row(module) for module in _modules(space)}


def _row(module: str) -> str:
    """The row of a table that a module axis's key means: `other` is every group without genes of its own."""
    return ANY if module in ("", "other") else module


def axis_keys(space: SearchSpace, gene: Gene | Switch | SourceGene, frame: CommonRecipe) -> list[Sequence[str]]:
    keys: list[Sequence[str]] = []
    if "layer" in gene.per:
        letter, count = _depth(space, frame)
        keys.append([f"{letter}{i}" for i in range(count)])
    if "module" in gene.per:
        keys.append(_modules(space))
    if "expert" in gene.per:
        keys.append(sorted(frame.experts))
    return keys


def _depth(space: SearchSpace, frame: CommonRecipe) -> tuple[str, int]:
    if space.layers.anchors is not None:
        return "a", space.layers.anchors
    if space.layers.groups == "each":
        return "l", frame.layers
    assert isinstance(space.layers.groups, int)
    return "g", space.layers.groups


def _modules(space: SearchSpace) -> list[str]:
    named = list(space.modules)
    return named if set(named) == set(MODULES) else [*(m for m in named if m != "other"), "other"]


def coordinate_name(gene: str, key: Sequence[str]) -> str:
    return ".".join([gene, *key])


def representatives(space: SearchSpace, frame: CommonRecipe) -> list[Recipe]:
    """A recipe for each method that candidates may have: all tensors merged by it, from the space's `init`."""
    genome = initial(coordinates(space, frame))
    return [
        decode(space, frame, {**genome, **dict.fromkeys(method_genes(space), method)}) for method in space.methods
    ]


def decode(space: SearchSpace, frame: CommonRecipe, genome: Mapping[str, float | str]) -> Recipe:
    """The recipe that a genome means. A pure function.

    Raises:
        ConfigError: a coordinate is missing or does not belong to the space.
    """
    _check_genome(space, frame, genome)
    method = _decode_method(space, genome)
    methods = [method] if isinstance(method, str) else sorted(set(method.values()))
    wanted_parameters, _ = shared_parameters(methods)
    parameters: dict[str, Any] = {name: value for name, value in space.fixed.items() if name in wanted_parameters}
    for name, gene in space.numbers.items():
        if name in wanted_parameters:
            per_expert = wanted_parameters[name].per_expert
            parameters[name] = _decode_gene(space, frame, name, gene, genome, per_expert)
    gated = bool(space.genes.gates) and "weight" in wanted_parameters
    if gated and wanted_parameters["weight"].default is None:
        parameters.setdefault("weight", 1.0)
    content = {
        "method": method,
        "base": frame.base,
        "experts": dict(frame.experts),
        "dtype": frame.dtype,
        "layers": frame.layers,
        "seed": frame.seed,
        "vocabulary": frame.vocabulary,
        "options": space.options(methods),
        "parameters": parameters,
        "operators": [operator.step(genome) for operator in frame.operators],
    }
    recipe = Recipe.model_validate(content)
    if not gated:
        return recipe
    weights = _gated(recipe.parameters["weight"], _openings(space, frame, genome), frame.layers)
    return Recipe.model_validate({**content, "parameters": {**parameters, "weight": weights}})


def _check_genome(space: SearchSpace, frame: CommonRecipe, genome: Mapping[str, float | str]) -> None:
    wanted = {coordinate.name for coordinate in coordinates(space, frame)}
    if wanted != set(genome):
        odd = sorted(wanted ^ set(genome))
        raise ConfigError("genome", [f"does not fit the space in {', '.join(odd[:5])}"])


def _decode_method(space: SearchSpace, genome: Mapping[str, float | str]) -> str | dict[str, str]:
    if isinstance(space.method, str):
        return space.method
    return {row: str(genome[name]) for name, row in method_genes(space).items()}


def _openings(space: SearchSpace, frame: CommonRecipe, genome: Mapping[str, float | str]) -> Table:
    """What a genome's switches or sources leave of each weight: row -> expert -> 1 or 0 by layer."""
    switch, source = space.genes.switch, space.genes.source
    if switch:
        shares = {name: float(choice == ON) for name, choice in genome.items()}
        return _decode_gene(space, frame, "switch", switch, shares, True)
    assert source
    found: Table = {}
    for expert in frame.experts:
        shares = {name: float(choice in (expert, MIX)) for name, choice in genome.items()}
        for row, values in _decode_gene(space, frame, "source", source, shares, False).items():
            found.setdefault(row, {})[expert] = values
    return found


def _gated(weights: Table, openings: Table, layers: int) -> Table:
    """The weights of what is open, 0 elsewhere.

    weights: a recipe's. openings: see `_openings`.

    Raises:
        ConfigError: no table can say it: a tensor may match a pattern of one and none of the other.
    """
    patterns, others = ([row for row in table if is_pattern(row)] for table in (weights, openings))
    if patterns != others and len(weights) > 1 and len(openings) > 1:
        raise ConfigError(
            "space",
            ["fixed.weight: has not the patterns that modules has, in their order; search it, or give both"],
        )
    found: Table = {}
    for row in (*(patterns or others), *MODULES):
        own, mine = _at(weights, row), _at(openings, row)
        found[row] = {}
        for expert, values in own.items():
            every = values if isinstance(values, list) else [values] * layers
            found[row][expert] = [w if s else 0.0 for w, s in zip(every, mine[expert], strict=True)]
    return found


def _at(table: Table, row: str) -> dict[str, Any]:
    """A table's row of that name, else the one for all that are not named."""
    return table[row] if row in table else table[ANY]


def _decode_gene(
    space: SearchSpace,
    frame: CommonRecipe,
    name: str,
    gene: Gene | Switch | SourceGene,
    genome: Mapping[str, float | str],
    per_expert: bool,
) -> dict[str, Any]:
    modules = _modules(space) if "module" in gene.per else [""]
    experts = sorted(frame.experts) if "expert" in gene.per else [""]
    table: Table = {}
    for module in modules:
        row: dict[str, Values] = {}
        for expert in experts:
            tail = [part for part in (module, expert) if part]
            if "layer" in gene.per:
                letter, count = _depth(space, frame)
                points = [float(genome[coordinate_name(name, [f"{letter}{i}", *tail])]) for i in range(count)]
                row[expert] = _spread(points, letter, frame.layers)
            else:
                row[expert] = [float(genome[coordinate_name(name, tail)])] * frame.layers
        table[_row(module)] = row
    if per_expert and "expert" not in gene.per:
        return {module: dict.fromkeys(frame.experts, row[""]) for module, row in table.items()}
    if not per_expert:
        return {module: row[""] for module, row in table.items()}
    return dict(table)


def _spread(points: Sequence[float], letter: str, layers: int) -> list[float]:
    """Values for each layer from a gene's points over depth: groups as equal as can be, or interpolated."""
    values = []
    for (first, share), *rest in _stencil(len(points), letter, layers):
        value = points[first] * share
        for point, more in rest:
            value += points[point] * more
        values.append(value)
    return values


def _stencil(points: int, letter: str, layers: int) -> list[list[tuple[int, float]]]:
    """What each layer's value is made of: points, and the share of each."""
    if letter != "a":
        return [[(layer * points // layers, 1.0)] for layer in range(layers)]
    found = []
    for layer in range(layers):
        position = layer * (points - 1) / (layers - 1)
        left = min(int(position), points - 2)
        share = position - left
        found.append([(left, 1.0 - share), (left + 1, share)])
    return found


def pull_back(
    space: SearchSpace,
    frame: CommonRecipe,
    genome: Mapping[str, float | str],
    tables: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
) -> dict[str, float]:
    """The derivative in each of a genome's numbers, from those in its recipe's values: `decode`, transposed.

    Args:
        tables: parameter -> row -> expert, or "" -> derivatives by layer, see `gradients.Gradient.tables`. A
            parameter that is not there, because the genome's method lacks it, has derivative 0.

    Returns:
        coordinate -> derivative in its value (not in the unit interval). Choices have none and are left out.

    Raises:
        ConfigError: a coordinate is missing or does not belong to the space.
    """
    _check_genome(space, frame, genome)
    if space.genes.gates and "weight" in tables:
        tables = {**tables, "weight": _through(tables["weight"], _openings(space, frame, genome))}
    found = {}
    for name, gene in space.numbers.items():
        letter, count = _depth(space, frame)
        stencil = _stencil(count, letter, frame.layers)
        modules = _modules(space) if "module" in gene.per else [""]
        experts = sorted(frame.experts) if "expert" in gene.per else [""]
        for module, expert in product(modules, experts):
            rows = [row for key, row in tables.get(name, {}).items() if _covers(module, key, modules)]
            columns = [row[expert] for row in rows] if expert else [own for row in rows for own in row.values()]
            slopes = [math.fsum(layer) for layer in zip(*columns, strict=True)] or [0.0] * frame.layers
            tail = [part for part in (module, expert) if part]
            if "layer" not in gene.per:
                found[coordinate_name(name, tail)] = math.fsum(slopes)
                continue
            for point in range(count):
                parts = [
                    slope * share
                    for slope, own in zip(slopes, stencil, strict=True)
                    for k, share in own
                    if k == point
                ]
                found[coordinate_name(name, [f"{letter}{point}", *tail])] = math.fsum(parts)
    return found


def _through(
    slopes: Mapping[str, Mapping[str, Sequence[float]]], openings: Table
) -> dict[str, dict[str, list[float]]]:
    """The derivatives in weights that are open, 0 elsewhere: `_gated`, transposed."""
    return {
        row: {
            expert: [slope if share else 0.0 for slope, share in zip(own, _at(openings, row)[expert], strict=True)]
            for expert, own in experts.items()
        }
        for row, experts in slopes.items()
    }


def _covers(module: str, row: str, modules: Sequence[str]) -> bool:
    """Whether a gene of `module`, one of `modules`, is the one of a row that is a pattern or a module group."""
    return row == module or (_row(module) == ANY and row not in modules)
