"""The search space: which numbers are searched, and how they decode to a recipe.

A gene says along which axes it varies (`per`): layer, module, expert. Each combination is one coordinate of
the genome, named like `weight.g0.attention.maths`. Besides the method's coefficients two genes are choices that act
on the experts' weights: `switch` says whether an expert takes part, `source` which one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from evomerge import plugins
from evomerge.errors import ConfigError, suggest
from evomerge.genes import Axis, Coordinate, Gene, Genome, distinct, initial
from evomerge.mutation import Operator
from evomerge.recipe import (
    ANY,
    Dtype,
    Recipe,
    Source,
    Strict,
    Table,
    Values,
    Vocabulary,
    expert_faults,
    shared_parameters,
)
from evomerge.tensors import MODULES, Place, is_pattern, key_of

TASK_ARITHMETIC = (0.5, 0.75, 1.0)  # λ that a search looks at first, beside the uniform average
ON, OFF = "on", "off"
BASE, MIX = "base", "mix"  # what a source may be besides an expert


def _parse_switch(value: Any) -> Any:
    return {True: ON, False: OFF}[value] if isinstance(value, bool) else value  # YAML's own idea of on and off


class Switch(Strict):
    """Whether an expert takes part: where it is `off`, its weight is 0.

    Attributes:
        per: the axes along which there are switches; without `expert`, one switches all experts.
        init: how the search starts.
    """

    per: Annotated[tuple[Axis, ...], AfterValidator(distinct)] = ()
    init: Annotated[Literal["on", "off"], BeforeValidator(_parse_switch)] = "on"


class SourceGene(Strict):
    """Which expert takes part, alone and with its own weight. Starts with `mix`, else with the first expert.

    Attributes:
        per: the axes along which there are choices.
        base: whether none may be chosen, which leaves the base.
        mix: whether all may be chosen, each with its weight.
    """

    per: Annotated[tuple[Literal["layer", "module"], ...], AfterValidator(distinct)] = ()
    base: bool = False
    mix: bool = False


class Genes(Strict):
    """Parameter -> gene, and the genes that act on the experts' weights."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Gene] = Field(init=False)

    switch: Switch | None = None
    source: SourceGene | None = None

    @property
    def gates(self) -> dict[str, Switch | SourceGene]:
        """Those that act on the experts' weights."""
        return {name: gene for name, gene in (("switch", self.switch), ("source", self.source)) if gene is not None}


class Layers(Strict):
    """How a per-layer gene spreads over depth: `groups` of equal values, or `anchors` interpolated between."""

    groups: int | Literal["each"] | None = None
    anchors: int | None = None

    @model_validator(mode="after")
    def _one(self) -> Layers:
        if (self.groups is None) == (self.anchors is None):
            raise ValueError("give either groups or anchors")
        if isinstance(self.groups, int) and self.groups < 1:
            raise ValueError(f"groups must be at least 1, but is {self.groups}")
        if self.anchors is not None and self.anchors < 2:
            raise ValueError(f"anchors must be at least 2, but is {self.anchors}")
        return self


def _parse_layers(value: Any) -> Any:
    return {"groups": "each"} if value == "each" else value


class MethodGene(Strict):
    """A method that is searched: one of `choose`, for the whole model or `per: [module]`. Starts with the first."""

    choose: tuple[str, ...] = Field(min_length=2)
    per: tuple[Literal["module"], ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> MethodGene:
        if len(set(self.choose)) < len(self.choose):
            raise ValueError("choose names a method twice")
        return self


def _parse_method(value: Any) -> Any:
    return {"choose": value} if isinstance(value, list) else value


class SearchSpace(Strict):
    """A search space file. See `search_spaces/` for examples.

    Attributes:
        method: a method; or a list of methods, or a `MethodGene`, to search among.
        modules: module groups and tensor patterns (`*q_proj*`) that have genes of their own; of several patterns
            that match a tensor the first counts.
        genes: parameter -> gene, and `switch` or `source`. Of several methods each takes the genes of its own
            parameters. Beside a switch or a source, weights that are neither searched nor fixed are 1.
        fixed: parameters and options that are not searched; options also by method, {ties: {normalize: false}}.
    """

    method: Annotated[str | MethodGene, BeforeValidator(_parse_method)]
    layers: Annotated[Layers, BeforeValidator(_parse_layers)] = Layers(groups=1)
    modules: tuple[str, ...] = ()
    genes: Genes
    fixed: dict[str, Any] = Field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that candidates may have, the one to start with first."""
        return (self.method,) if isinstance(self.method, str) else self.method.choose

    @property
    def numbers(self) -> dict[str, Gene]:
        """Parameter -> gene."""
        return self.genes.__pydantic_extra__

    @model_validator(mode="after")
    def _known_names(self) -> SearchSpace:
        known = plugins.names("methods")
        faults = [
            f"method: unknown method {name!r}.{suggest(name, known)}" for name in self.methods if name not in known
        ]
        if faults:
            raise ValueError("\n".join(faults))
        parameters, faults = shared_parameters(self.methods)
        faults += [
            f"modules: unknown module group {module!r}.{suggest(module, MODULES)} A tensor pattern has a * or a dot"
            for module in self.modules
            if module not in MODULES and not is_pattern(module)
        ]
        faults += [
            f"modules: names {module!r} twice"
            for module in sorted(set(self.modules))
            if self.modules.count(module) > 1
        ]
        if not (self.numbers or self.genes.gates) and isinstance(self.method, str):
            faults.append("genes: there is none, so there is nothing to search")
        if isinstance(self.method, MethodGene) and self.method.per and not self.modules:
            faults.append("method.per: has module, but the space lists no modules")
        for name, gene in self.numbers.items():
            faults += self._gene_faults(name, gene, parameters)
        for name, gate in self.genes.gates.items():
            faults += self._gate_faults(name, gate, parameters)
        faults += self._fixed_faults(parameters)
        given = {*self.numbers, *self.fixed, *(["weight"] if self.genes.gates else [])}
        for parameter in parameters.values():
            if parameter.default is None and parameter.name not in given:
                faults.append(f"genes.{parameter.name}: {self._either()} needs it, here or under fixed")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _either(self) -> str:
        return " or ".join(self.methods)

    def _gene_faults(self, name: str, gene: Gene, parameters: Mapping[str, Any]) -> list[str]:
        if name not in parameters:
            return [f"genes.{name}: {self._either()} has no such parameter.{suggest(name, parameters)}"]
        faults = []
        if "expert" in gene.per and not parameters[name].per_expert:
            faults.append(f"genes.{name}.per: {self._either()} has one {name} for all experts together")
        for key, value in (("low", gene.low), ("high", gene.high)):
            if fault := parameters[name].fault(value):
                faults.append(f"genes.{name}.{key}: {fault}")
        return faults + self._axis_faults(name, gene)

    def _axis_faults(self, name: str, gene: Gene | Switch | SourceGene) -> list[str]:
        if "module" in gene.per and not self.modules:
            return [f"genes.{name}.per: has module, but the space lists no modules"]
        return []

    def _gate_faults(self, name: str, gate: Switch | SourceGene, parameters: Mapping[str, Any]) -> list[str]:
        faults = self._axis_faults(name, gate)
        if name == "source" and self.genes.switch:
            faults.append("genes.source: a space has either a source or switches; remove one of them")
        if "layer" in gate.per and self.layers.anchors is not None:
            faults.append(
                f"genes.{name}.per: has layer, but between anchors there are no choices; give layers groups"
            )
        if "weight" not in parameters or not parameters["weight"].per_expert:
            return [*faults, f"genes.{name}: {self._either()} has no weight of each expert that it could act on"]
        return faults + self._nothing_faults(name, gate)

    def _nothing_faults(self, name: str, gate: Switch | SourceGene) -> list[str]:
        """The ways to set all weights to 0 under methods that do not make the base of it."""
        methods = " or ".join(method for method in self.methods if _needs_weights(method))
        if methods and (isinstance(gate, Switch) or gate.base):
            where = f"genes.{name}" if isinstance(gate, Switch) else f"genes.{name}.base"
            return [
                f"{where}: may set all weights to 0, of which {methods} does not make the base; take a method that "
                "adds to the base, like task_arithmetic (with normalize it averages)"
            ]
        if methods and self._has_weight_0():
            return [
                f"genes.{name}: may choose an expert of weight 0, which alone is no model to {methods}; keep "
                "weights above 0"
            ]
        return []

    def _has_weight_0(self) -> bool:
        """Whether some expert's weight, if it has a gene or is fixed, may be 0."""
        gene = self.numbers.get("weight")
        return gene.low <= 0.0 <= gene.high if gene else _has_0(self.fixed.get("weight"))

    def _fixed_faults(self, parameters: Mapping[str, Any]) -> list[str]:
        options = {option for method in self.methods for option in plugins.load("methods", method).OPTIONS}
        faults = []
        for name, value in self.fixed.items():
            if name not in {*parameters, *options, *self.methods}:
                faults.append(
                    f"fixed.{name}: {self._either()} has no such key.{suggest(name, [*parameters, *options])}"
                )
            elif name in self.numbers:
                faults.append(f"fixed.{name}: is a gene as well")
            elif name in options and not isinstance(value, bool):
                faults.append(f"fixed.{name}: must be true or false")
        return faults

    def options(self, methods: Sequence[str]) -> dict[str, Any]:
        """What `fixed` says of some methods' options, as a recipe takes it."""
        known = {option for method in methods for option in plugins.load("methods", method).OPTIONS}
        return {name: value for name, value in self.fixed.items() if name in known or name in methods}


def _needs_weights(method: str) -> bool:
    """Whether a method has weights of the experts, and merges to something else than the base if all are 0.

    Those that add λ times what the experts make together to the base have a `lambda`.
    """
    names = {parameter.name for parameter in plugins.load("methods", method).PARAMETERS}
    return "weight" in names and "lambda" not in names


def _has_0(value: Any) -> bool:
    """Whether a value of `fixed` is 0 somewhere."""
    if isinstance(value, Mapping | list):
        return any(map(_has_0, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, int | float) and value == 0


@dataclass(frozen=True)
class Frame:
    """What a space is laid over: the models and all that holds for every candidate."""

    base: Source
    experts: Mapping[str, Source]
    layers: int
    dtype: Dtype
    seed: int
    operators: tuple[Operator, ...] = ()
    vocabulary: Vocabulary | None = None


def coordinates(space: SearchSpace, frame: Frame) -> list[Coordinate]:
    """The genome's coordinates, in a fixed order.

    Raises:
        ConfigError: the space does not fit the model or the experts.
    """
    _check_fit(space, frame)
    found = [Coordinate(name, 0.0, 1.0, space.methods[0], False, space.methods) for name in _method_genes(space)]
    for name, gate in space.genes.gates.items():
        choices, first = _choices(gate, frame)
        found += [Coordinate(one, 0.0, 1.0, first, False, choices) for one in _names(space, frame, name, gate)]
    for name, gene in space.numbers.items():
        init = (gene.low + gene.high) / 2 if gene.init is None else gene.init
        point = Coordinate(name, gene.low, gene.high, init, gene.scale == "log", step=gene.step)
        point = replace(point, init=point.nearest(init))
        found += [replace(point, name=one) for one in _names(space, frame, name, gene)]
    return found + [point for operator in frame.operators for point in operator.coordinates()]


def _choices(gate: Switch | SourceGene, frame: Frame) -> tuple[tuple[str, ...], str]:
    """What a switch or a source may be, and what it is at first."""
    if isinstance(gate, Switch):
        return (ON, OFF), gate.init
    choices = (*sorted(frame.experts), *[BASE] * gate.base, *[MIX] * gate.mix)
    return choices, MIX if gate.mix else choices[0]


def _names(space: SearchSpace, frame: Frame, name: str, gene: Gene | Switch | SourceGene) -> list[str]:
    """The names of a gene's coordinates."""
    return [_name(name, key) for key in product(*_axis_keys(space, gene, frame))]


def _check_fit(space: SearchSpace, frame: Frame) -> None:
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


def _method_genes(space: SearchSpace) -> dict[str, str]:
    """Coordinate name -> the module group or pattern whose method it is, ANY for all."""
    if isinstance(space.method, str):
        return {}
    if not space.method.per:
        return {"method": ANY}
    return {_name("method", [module]): _row(module) for module in _modules(space)}


def _row(module: str) -> str:
    """The row of a table that a module axis's key means: `other` is every group without genes of its own."""
    return ANY if module in ("", "other") else module


def _axis_keys(space: SearchSpace, gene: Gene | Switch | SourceGene, frame: Frame) -> list[Sequence[str]]:
    keys: list[Sequence[str]] = []
    if "layer" in gene.per:
        letter, count = _depth(space, frame)
        keys.append([f"{letter}{i}" for i in range(count)])
    if "module" in gene.per:
        keys.append(_modules(space))
    if "expert" in gene.per:
        keys.append(sorted(frame.experts))
    return keys


def _depth(space: SearchSpace, frame: Frame) -> tuple[str, int]:
    if space.layers.anchors is not None:
        return "a", space.layers.anchors
    if space.layers.groups == "each":
        return "l", frame.layers
    assert isinstance(space.layers.groups, int)
    return "g", space.layers.groups


def _modules(space: SearchSpace) -> list[str]:
    named = list(space.modules)
    return named if set(named) == set(MODULES) else [*(m for m in named if m != "other"), "other"]


def _name(gene: str, key: Sequence[str]) -> str:
    return ".".join([gene, *key])


def parse_genome(value: Any) -> Any:
    """A genome as YAML has it, which takes a bare `on` or `off` for a truth value."""
    return {key: _parse_switch(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def representatives(space: SearchSpace, frame: Frame) -> list[Recipe]:
    """A recipe for each method that candidates may have: all tensors merged by it, from the space's `init`."""
    genome = initial(coordinates(space, frame))
    return [
        decode(space, frame, {**genome, **dict.fromkeys(_method_genes(space), method)}) for method in space.methods
    ]


def known_points(space: SearchSpace, frame: Frame, more: Sequence[Genome] = ()) -> list[Genome]:
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
    found += [{**start, **dict.fromkeys(_method_genes(space), method)} for method in space.methods[1:]]
    others = (*_all_alike(space, frame, start), *_each_alone(space, frame, start), *more)
    for genome in (*others, *_none(space, frame, start)):
        if genome not in found:
            found.append(genome)
    return found


def together(space: SearchSpace, frame: Frame, method: str) -> Genome | None:
    """The space's `init` with one method for all tensors, and all experts taking part in it; None if a source lets
    only one of them."""
    if space.genes.source and not space.genes.source.mix:
        return None
    found = initial(coordinates(space, frame)) | dict.fromkeys(_method_genes(space), method)
    for name, gate in space.genes.gates.items():
        found |= dict.fromkeys(_names(space, frame, name, gate), ON if isinstance(gate, Switch) else MIX)
    return found


def _all_alike(space: SearchSpace, frame: Frame, start: Genome) -> list[Genome]:
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


def _each_alone(space: SearchSpace, frame: Frame, start: Genome) -> list[Genome]:
    """Each expert alone, in the order of their names; none if nothing tells experts apart."""
    switch, source, weight = space.genes.switch, space.genes.source, space.numbers.get("weight")
    switches = list(product(*_axis_keys(space, switch, frame))) if switch else []
    found = []
    for alone in sorted(frame.experts):
        weights, chosen = {alone: 1.0}, {}
        if source:
            chosen = dict.fromkeys(_names(space, frame, "source", source), alone)
        elif switch and "expert" in switch.per:
            chosen = {_name("switch", key): ON if key[-1] == alone else OFF for key in switches}
        elif weight and "expert" in weight.per:
            chosen = {_name("switch", key): ON for key in switches}
            weights = {expert: float(expert == alone) for expert in frame.experts}
        else:
            return []
        found.append(_weighted(space, frame, {**start, **chosen}, weights))
    return found


def _none(space: SearchSpace, frame: Frame, start: Genome) -> list[Genome]:
    """No expert taking part, which leaves the base; none where the genes cannot say it, or the methods make
    something else of it. Under normalization weights of 0 are the limit of no small ones: near them is no base.
    """
    for method, recipe in zip(space.methods, representatives(space, frame), strict=True):
        if "weight" not in recipe.parameters or _needs_weights(method):
            continue
        chosen = {**start, **dict.fromkeys(_method_genes(space), method)}
        if switch := space.genes.switch:
            return [{**chosen, **dict.fromkeys(_names(space, frame, "switch", switch), OFF)}]
        if (source := space.genes.source) and source.base:
            return [{**chosen, **dict.fromkeys(_names(space, frame, "source", source), BASE)}]
        gene = space.numbers.get("weight")
        if gene and gene.low <= 0.0 <= gene.high and not recipe.options[method].get("normalize"):
            genome = _weighted(space, frame, chosen, dict.fromkeys(frame.experts, 0.0))
            return [genome] if not any(genome[name] for name in _names(space, frame, "weight", gene)) else []
    return []


@dataclass(frozen=True)
class Wish:
    """The weight that each expert should have in one tensor. elements: how many the tensor has."""

    place: Place
    elements: int
    weight: float


def nearest_weights(space: SearchSpace, frame: Frame, genome: Genome, wishes: Sequence[Wish]) -> Genome:
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


def _weighted(space: SearchSpace, frame: Frame, genome: Genome, weights: Mapping[str, float]) -> Genome:
    """The genome with some experts' weights, as near as their genes allow; as it is if weights have no gene."""
    gene = space.numbers.get("weight")
    if gene is None:
        return genome
    points = {point.name: point for point in coordinates(space, frame)}
    found = dict(genome)
    for key in product(*_axis_keys(space, gene, frame)):
        expert = key[-1] if "expert" in gene.per else next(iter(weights))
        if expert in weights:
            name = _name("weight", key)
            found[name] = points[name].nearest(weights[expert])
    return found


def decode(space: SearchSpace, frame: Frame, genome: Mapping[str, float | str]) -> Recipe:
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


def _check_genome(space: SearchSpace, frame: Frame, genome: Mapping[str, float | str]) -> None:
    wanted = {coordinate.name for coordinate in coordinates(space, frame)}
    if wanted != set(genome):
        odd = sorted(wanted ^ set(genome))
        raise ConfigError("genome", [f"does not fit the space in {', '.join(odd[:5])}"])


def _decode_method(space: SearchSpace, genome: Mapping[str, float | str]) -> str | dict[str, str]:
    if isinstance(space.method, str):
        return space.method
    return {row: str(genome[name]) for name, row in _method_genes(space).items()}


def _openings(space: SearchSpace, frame: Frame, genome: Mapping[str, float | str]) -> Table:
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
    frame: Frame,
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
                points = [float(genome[_name(name, [f"{letter}{i}", *tail])]) for i in range(count)]
                row[expert] = _spread(points, letter, frame.layers)
            else:
                row[expert] = [float(genome[_name(name, tail)])] * frame.layers
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
    frame: Frame,
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
                found[_name(name, tail)] = math.fsum(slopes)
                continue
            for point in range(count):
                parts = [
                    slope * share
                    for slope, own in zip(slopes, stencil, strict=True)
                    for k, share in own
                    if k == point
                ]
                found[_name(name, [f"{letter}{point}", *tail])] = math.fsum(parts)
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
