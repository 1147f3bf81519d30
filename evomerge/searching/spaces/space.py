"""The search space: which numbers are searched, and how they decode to a recipe.

A gene says along which axes it varies (`per`): layer, module, expert. Each combination is one coordinate of
the genome, named like `weight.g0.attention.maths`. Besides the method's coefficients two genes are choices that act
on the experts' weights: `switch` says whether an expert takes part, `source` which one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from evomerge import plugins
from evomerge.errors import suggest
from evomerge.files.schema import Strict
from evomerge.models.tensor_names import MODULES, is_pattern
from evomerge.recipes.canonical import shared_parameters
from evomerge.searching.spaces.genes import Axis, Gene, distinct

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
        methods = " or ".join(method for method in self.methods if needs_weights(method))
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


def needs_weights(method: str) -> bool:
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


def parse_genome(value: Any) -> Any:
    """A genome as YAML has it, which takes a bare `on` or `off` for a truth value."""
    return {key: _parse_switch(one) for key, one in value.items()} if isinstance(value, Mapping) else value
