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
from evomerge.recipe import ANY, Dtype, OperatorStep, Recipe, Source, Strict, Table, Values
from evomerge.tensors import MODULES

Genome = dict[str, float]
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


class SearchSpace(Strict):
    """A search space file. See `search_spaces/` for examples."""

    method: str
    layers: Annotated[Layers, BeforeValidator(_parse_layers)] = Layers(groups=1)
    modules: tuple[str, ...] = ()
    genes: dict[str, Gene]
    fixed: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known_names(self) -> SearchSpace:
        methods = plugins.names("methods")
        if self.method not in methods:
            raise ValueError(f"method: unknown method {self.method!r}.{suggest(self.method, methods)}")
        method = plugins.load("methods", self.method)
        parameters = {parameter.name: parameter for parameter in method.PARAMETERS}
        faults = [
            f"modules: unknown module group {module!r}.{suggest(module, MODULES)}"
            for module in self.modules
            if module not in MODULES
        ]
        if not self.genes:
            faults.append("genes: there is none, so there is nothing to search")
        for name, gene in self.genes.items():
            if name not in parameters:
                faults.append(f"genes.{name}: {self.method} has no such parameter.{suggest(name, parameters)}")
                continue
            if "expert" in gene.per and not parameters[name].per_expert:
                faults.append(f"genes.{name}.per: {self.method} has one {name} for all experts together")
            for key, value in (("low", gene.low), ("high", gene.high)):
                if fault := parameters[name].fault(value):
                    faults.append(f"genes.{name}.{key}: {fault}")
            if "module" in gene.per and not self.modules:
                faults.append(f"genes.{name}.per: has module, but the space lists no modules")
        for name in self.fixed:
            known = {*parameters, *method.OPTIONS}
            if name not in known:
                faults.append(f"fixed.{name}: {self.method} has no such key.{suggest(name, known)}")
            elif name in self.genes:
                faults.append(f"fixed.{name}: is a gene as well")
            elif name in method.OPTIONS and not isinstance(self.fixed[name], bool):
                faults.append(f"fixed.{name}: must be true or false")
        for parameter in method.PARAMETERS:
            if parameter.default is None and parameter.name not in {*self.genes, *self.fixed}:
                faults.append(f"genes.{parameter.name}: {self.method} needs it, here or under fixed")
        if faults:
            raise ValueError("\n".join(faults))
        return self


@dataclass(frozen=True)
class Coordinate:
    """One number of the genome: its name, and the unit interval's image in [low, high]."""

    name: str
    low: float
    high: float
    init: float
    log: bool

    def from_unit(self, unit: float) -> float:
        """The value at `unit` in [0, 1]; values outside are clipped."""
        unit = min(max(unit, 0.0), 1.0)
        if unit in (0.0, 1.0):
            return self.high if unit else self.low
        if self.log:
            return min(
                max(math.exp(math.log(self.low) + unit * math.log(self.high / self.low)), self.low), self.high
            )
        return self.low + unit * (self.high - self.low)

    def to_unit(self, value: float) -> float:
        """The inverse of `from_unit`."""
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


def coordinates(space: SearchSpace, frame: Frame) -> list[Coordinate]:
    """The genome's coordinates, in a fixed order.

    Raises:
        ConfigError: the space does not fit the model or the experts.
    """
    _check_fit(space, frame)
    found = []
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
    fewest, most = plugins.load("methods", space.method).EXPERTS
    if len(frame.experts) < fewest or (most is not None and len(frame.experts) > most):
        wanted = f"exactly {fewest}" if fewest == most else f"at least {fewest}"
        faults.append(
            f"method: {space.method} takes {wanted} expert{'' if fewest == 1 else 's'}, "
            f"but the experiment has {len(frame.experts)}"
        )
    if faults:
        raise ConfigError("space", faults)


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


def known_points(space: SearchSpace, frame: Frame) -> list[Genome]:
    """Genomes worth a look before any search, distinct: the space's `init`; where weights are searched, all
    experts alike (task arithmetic at a few λ, the uniform average among them) and each expert alone.

    Values outside a gene's bounds are clipped to them. Genes other than `weight` stay at their `init`.
    """
    points = coordinates(space, frame)
    found = [initial(points)]
    gene = space.genes.get("weight")
    if gene is None:
        return found
    experts = sorted(frame.experts)
    per_expert = "expert" in gene.per
    keys = list(product(*_axis_keys(space, gene, frame)))
    options = {**plugins.load("methods", space.method).OPTIONS, **space.fixed}
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


def decode(space: SearchSpace, frame: Frame, genome: Mapping[str, float]) -> Recipe:
    """The recipe that a genome means. A pure function.

    Raises:
        ConfigError: a coordinate is missing or does not belong to the space.
    """
    wanted = {coordinate.name for coordinate in coordinates(space, frame)}
    if wanted != set(genome):
        odd = sorted(wanted ^ set(genome))
        raise ConfigError("genome", [f"does not fit the space in {', '.join(odd[:5])}"])
    method = plugins.load("methods", space.method)
    parameters: dict[str, Any] = {name: value for name, value in space.fixed.items() if name not in method.OPTIONS}
    for name, gene in space.genes.items():
        per_expert = next(p.per_expert for p in method.PARAMETERS if p.name == name)
        parameters[name] = _decode_gene(space, frame, name, gene, genome, per_expert)
    return Recipe.model_validate(
        {
            "method": space.method,
            "base": frame.base,
            "experts": dict(frame.experts),
            "dtype": frame.dtype,
            "layers": frame.layers,
            "seed": frame.seed,
            "options": {name: value for name, value in space.fixed.items() if name in method.OPTIONS},
            "parameters": parameters,
            "operators": frame.operators,
        }
    )


def _decode_gene(
    space: SearchSpace, frame: Frame, name: str, gene: Gene, genome: Mapping[str, float], per_expert: bool
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
                points = [genome[_name(name, [f"{letter}{i}", *tail])] for i in range(count)]
                row[expert] = _spread(points, letter, frame.layers)
            else:
                row[expert] = [genome[_name(name, tail)]] * frame.layers
        # "other" stands for every module group without genes of its own.
        table[ANY if module in ("", "other") else module] = row
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
