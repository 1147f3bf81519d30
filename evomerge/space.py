"""The search space: which numbers are searched, and how they decode to a recipe.

A gene says along which axes it varies (`per`): layer, module, expert. Each combination is one coordinate of
the genome, named like `weight.g0.attention.maths`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from evomerge import plugins
from evomerge.errors import ConfigError, suggest
from evomerge.recipe import (
    ANY,
    Dtype,
    OperatorStep,
    Recipe,
    Source,
    Strict,
    Table,
    Values,
    Vocabulary,
    expert_faults,
    shared_parameters,
)
from evomerge.tensors import MODULES, is_pattern

Genome = dict[str, float | str]
TASK_ARITHMETIC = (0.5, 0.75, 1.0)  # λ that a search looks at first, beside the uniform average
Axis = Literal["layer", "module", "expert"]


class Gene(Strict):
    """A coefficient that is searched.

    Attributes:
        low, high: bounds, inclusive.
        init: where the search starts; the middle by default.
        per: the axes along which it has a value of its own.
        scale: `log` searches the logarithm, for coefficients that span magnitudes.
    """

    low: float
    high: float
    init: float | None = None
    per: tuple[Axis, ...] = ()
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _sound(self) -> Gene:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low must be below high, but they are {self.low:g} and {self.high:g}")
        if self.init is not None and not self.low <= self.init <= self.high:
            raise ValueError(f"init must lie in [{self.low:g}, {self.high:g}], but is {self.init:g}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"a log scale needs a positive low, but it is {self.low:g}")
        if len(set(self.per)) < len(self.per):
            raise ValueError("per names an axis twice")
        return self


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
        genes: parameter -> gene. Of several methods each takes the genes of its own parameters.
        fixed: parameters and options that are not searched; options also by method, {ties: {normalize: false}}.
    """

    method: Annotated[str | MethodGene, BeforeValidator(_parse_method)]
    layers: Annotated[Layers, BeforeValidator(_parse_layers)] = Layers(groups=1)
    modules: tuple[str, ...] = ()
    genes: dict[str, Gene]
    fixed: dict[str, Any] = Field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that candidates may have, the one to start with first."""
        return (self.method,) if isinstance(self.method, str) else self.method.choose

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
        if not self.genes and isinstance(self.method, str):
            faults.append("genes: there is none, so there is nothing to search")
        if isinstance(self.method, MethodGene) and self.method.per and not self.modules:
            faults.append("method.per: has module, but the space lists no modules")
        for name, gene in self.genes.items():
            faults += self._gene_faults(name, gene, parameters)
        faults += self._fixed_faults(parameters)
        for parameter in parameters.values():
            if parameter.default is None and parameter.name not in {*self.genes, *self.fixed}:
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
        if "module" in gene.per and not self.modules:
            faults.append(f"genes.{name}.per: has module, but the space lists no modules")
        return faults

    def _fixed_faults(self, parameters: Mapping[str, Any]) -> list[str]:
        options = {option for method in self.methods for option in plugins.load("methods", method).OPTIONS}
        faults = []
        for name, value in self.fixed.items():
            if name not in {*parameters, *options, *self.methods}:
                faults.append(
                    f"fixed.{name}: {self._either()} has no such key.{suggest(name, [*parameters, *options])}"
                )
            elif name in self.genes:
                faults.append(f"fixed.{name}: is a gene as well")
            elif name in options and not isinstance(value, bool):
                faults.append(f"fixed.{name}: must be true or false")
        return faults

    def options(self, methods: Sequence[str]) -> dict[str, Any]:
        """What `fixed` says of some methods' options, as a recipe takes it."""
        known = {option for method in methods for option in plugins.load("methods", method).OPTIONS}
        return {name: value for name, value in self.fixed.items() if name in known or name in methods}


@dataclass(frozen=True)
class Coordinate:
    """One number of the genome, or one choice: its name, and what the unit interval means.

    Attributes:
        choices: what a choice may be, each an equal part of the unit interval; () for a number in [low, high].
    """

    name: str
    low: float
    high: float
    init: float | str
    log: bool
    choices: tuple[str, ...] = ()

    def from_unit(self, unit: float) -> float | str:
        """The value at `unit` in [0, 1]; values outside are clipped."""
        unit = min(max(unit, 0.0), 1.0)
        if self.choices:
            return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]
        if unit in (0.0, 1.0):
            return self.high if unit else self.low
        if self.log:
            return min(
                max(math.exp(math.log(self.low) + unit * math.log(self.high / self.low)), self.low), self.high
            )
        return self.low + unit * (self.high - self.low)

    def to_unit(self, value: float | str) -> float:
        """The inverse of `from_unit`; the middle of a choice's part."""
        if isinstance(value, str):
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Frame:
    """What a space is laid over: the models and all that holds for every candidate."""

    base: Source
    experts: Mapping[str, Source]
    layers: int
    dtype: Dtype
    seed: int
    operators: tuple[OperatorStep, ...] = ()
    vocabulary: Vocabulary | None = None


def coordinates(space: SearchSpace, frame: Frame) -> list[Coordinate]:
    """The genome's coordinates, in a fixed order.

    Raises:
        ConfigError: the space does not fit the model or the experts.
    """
    _check_fit(space, frame)
    found = [Coordinate(name, 0.0, 1.0, space.methods[0], False, space.methods) for name in _method_genes(space)]
    for name, gene in space.genes.items():
        init = (gene.low + gene.high) / 2 if gene.init is None else gene.init
        for key in product(*_axis_keys(space, gene, frame)):
            found.append(Coordinate(_name(name, key), gene.low, gene.high, init, log=gene.scale == "log"))
    return found


def _check_fit(space: SearchSpace, frame: Frame) -> None:
    faults = []
    groups = space.layers.groups
    if isinstance(groups, int) and groups > frame.layers:
        faults.append(f"layers.groups: is {groups}, but the model has {frame.layers} layers")
    if (space.layers.anchors or 0) > frame.layers:
        faults.append(f"layers.anchors: is {space.layers.anchors}, but the model has {frame.layers} layers")
    for method in space.methods:
        faults += expert_faults(method, len(frame.experts))
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


def _axis_keys(space: SearchSpace, gene: Gene, frame: Frame) -> list[Sequence[str]]:
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


def initial(coordinates: Sequence[Coordinate]) -> Genome:
    """The genome that the space's `init` values describe."""
    return {coordinate.name: coordinate.init for coordinate in coordinates}


def representatives(space: SearchSpace, frame: Frame) -> list[Recipe]:
    """A recipe for each method that candidates may have: all tensors merged by it, from the space's `init`."""
    genome = initial(coordinates(space, frame))
    return [
        decode(space, frame, {**genome, **dict.fromkeys(_method_genes(space), method)}) for method in space.methods
    ]


def known_points(space: SearchSpace, frame: Frame) -> list[Genome]:
    """Genomes worth a look before any search, distinct: the space's `init`, with each method; where weights are
    searched, all experts alike (task arithmetic at a few λ, the uniform average among them) and each expert alone.

    Values outside a gene's bounds are clipped to them. Genes other than `weight` stay at their `init`.
    """
    points = coordinates(space, frame)
    found = [initial(points)]
    found += [{**found[0], **dict.fromkeys(_method_genes(space), method)} for method in space.methods[1:]]
    gene = space.genes.get("weight")
    if gene is None:
        return found
    experts = sorted(frame.experts)
    per_expert = "expert" in gene.per
    keys = list(product(*_axis_keys(space, gene, frame)))
    options = decode(space, frame, found[0]).options[space.methods[0]]
    # Under normalization the common size of the weights does not matter.
    sizes = (1.0,) if options.get("normalize") else (1.0 / len(experts), *TASK_ARITHMETIC)
    wanted: list[dict[str, float]] = [dict.fromkeys(experts, size) for size in sizes]
    if per_expert:
        wanted += [{expert: float(expert == alone) for expert in experts} for alone in experts]
    for weights in wanted:
        genome = dict(found[0])
        for key in keys:
            weight = weights[key[-1] if per_expert else experts[0]]
            genome[_name("weight", key)] = min(max(weight, gene.low), gene.high)
        if genome not in found:
            found.append(genome)
    return found


def decode(space: SearchSpace, frame: Frame, genome: Mapping[str, float | str]) -> Recipe:
    """The recipe that a genome means. A pure function.

    Raises:
        ConfigError: a coordinate is missing or does not belong to the space.
    """
    wanted = {coordinate.name for coordinate in coordinates(space, frame)}
    if wanted != set(genome):
        odd = sorted(wanted ^ set(genome))
        raise ConfigError("genome", [f"does not fit the space in {', '.join(odd[:5])}"])
    method = _decode_method(space, genome)
    methods = [method] if isinstance(method, str) else sorted(set(method.values()))
    wanted_parameters, _ = shared_parameters(methods)
    parameters: dict[str, Any] = {name: value for name, value in space.fixed.items() if name in wanted_parameters}
    for name, gene in space.genes.items():
        if name in wanted_parameters:
            per_expert = wanted_parameters[name].per_expert
            parameters[name] = _decode_gene(space, frame, name, gene, genome, per_expert)
    return Recipe.model_validate(
        {
            "method": method,
            "base": frame.base,
            "experts": dict(frame.experts),
            "dtype": frame.dtype,
            "layers": frame.layers,
            "seed": frame.seed,
            "vocabulary": frame.vocabulary,
            "options": space.options(methods),
            "parameters": parameters,
            "operators": frame.operators,
        }
    )


def _decode_method(space: SearchSpace, genome: Mapping[str, float | str]) -> str | dict[str, str]:
    if isinstance(space.method, str):
        return space.method
    return {row: str(genome[name]) for name, row in _method_genes(space).items()}


def _decode_gene(
    space: SearchSpace, frame: Frame, name: str, gene: Gene, genome: Mapping[str, float | str], per_expert: bool
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
    if letter != "a":
        return [points[layer * len(points) // layers] for layer in range(layers)]
    values = []
    for layer in range(layers):
        position = layer * (len(points) - 1) / (layers - 1)
        left = min(int(position), len(points) - 2)
        share = position - left
        values.append(points[left] * (1.0 - share) + points[left + 1] * share)
    return values
