"""What is wrong with a search space: faults that do not depend on models, each with its key and the cure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from evomerge import plugins
from evomerge.errors import suggest
from evomerge.models.tensor_names import MODULES, is_pattern
from evomerge.recipes.canonical import shared_parameters
from evomerge.searching.spaces.genes import Gene, SourceGene, Switch


class Space(Protocol):
    """A search space as far as its faults depend on it; see `space.SearchSpace` for the attributes."""

    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def method_by_module(self) -> bool: ...
    @property
    def modules(self) -> tuple[str, ...]: ...
    @property
    def anchored(self) -> bool: ...
    @property
    def numbers(self) -> Mapping[str, Gene]: ...
    @property
    def gates(self) -> Mapping[str, Switch | SourceGene]: ...
    @property
    def fixed(self) -> Mapping[str, Any]: ...


def space_faults(space: Space) -> list[str]:
    """All faults of a space; if it names unknown methods, those faults alone."""
    known = plugins.names("methods")
    unknown = [
        f"method: unknown method {name!r}.{suggest(name, known)}" for name in space.methods if name not in known
    ]
    if unknown:
        return unknown
    parameters, faults = shared_parameters(space.methods)
    faults += _module_faults(space)
    if not (space.numbers or space.gates) and len(space.methods) == 1:
        faults.append("genes: there is none, so there is nothing to search")
    if space.method_by_module and not space.modules:
        faults.append("method.per: has module, but the space lists no modules")
    for name, gene in space.numbers.items():
        faults += _gene_faults(space, name, gene, parameters)
    for name, gate in space.gates.items():
        faults += _gate_faults(space, name, gate, parameters)
    return [*faults, *_fixed_faults(space, parameters), *_missing_faults(space, parameters)]


def needs_weights(method: str) -> bool:
    """Whether a method has weights of the experts, and merges to something else than the base if all are 0.

    Methods that add λ times a sum over the experts to the base make the base of weights of 0; they have a parameter
    `lambda`.
    """
    names = {parameter.name for parameter in plugins.load("methods", method).PARAMETERS}
    return "weight" in names and "lambda" not in names


def _either(space: Space) -> str:
    """The methods as a sentence names them."""
    return " or ".join(space.methods)


def _module_faults(space: Space) -> list[str]:
    """Faults of the module groups and tensor patterns."""
    faults = [
        f"modules: unknown module group {module!r}.{suggest(module, MODULES)} A tensor pattern has a * or a dot"
        for module in space.modules
        if module not in MODULES and not is_pattern(module)
    ]
    twice = [module for module in sorted(set(space.modules)) if space.modules.count(module) > 1]
    return faults + [f"modules: names {module!r} twice" for module in twice]


def _gene_faults(space: Space, name: str, gene: Gene, parameters: Mapping[str, Any]) -> list[str]:
    """Faults of the gene of a number. parameters: name -> parameter, of all methods together."""
    if name not in parameters:
        return [f"genes.{name}: {_either(space)} has no such parameter.{suggest(name, parameters)}"]
    faults = []
    if "expert" in gene.per and not parameters[name].per_expert:
        faults.append(f"genes.{name}.per: {_either(space)} has one {name} for all experts together")
    for key, value in (("low", gene.low), ("high", gene.high)):
        if fault := parameters[name].fault(value):
            faults.append(f"genes.{name}.{key}: {fault}")
    return faults + _axis_faults(space, name, gene)


def _axis_faults(space: Space, name: str, gene: Gene | Switch | SourceGene) -> list[str]:
    if "module" in gene.per and not space.modules:
        return [f"genes.{name}.per: has module, but the space lists no modules"]
    return []


# --- switches and sources ----------------------------------------------------------------------------------


def _gate_faults(space: Space, name: str, gate: Switch | SourceGene, parameters: Mapping[str, Any]) -> list[str]:
    """Faults of a switch or a source."""
    faults = _axis_faults(space, name, gate)
    if name == "source" and "switch" in space.gates:
        faults.append("genes.source: a space has either a source or switches; remove one of them")
    if "layer" in gate.per and space.anchored:
        faults.append(f"genes.{name}.per: has layer, but between anchors there are no choices; give layers groups")
    if "weight" not in parameters or not parameters["weight"].per_expert:
        return [*faults, f"genes.{name}: {_either(space)} has no weight of each expert that it could act on"]
    return faults + _nothing_faults(space, name, gate)


def _nothing_faults(space: Space, name: str, gate: Switch | SourceGene) -> list[str]:
    """The ways to set all weights to 0 under methods that make something else than the base of that."""
    methods = " or ".join(method for method in space.methods if needs_weights(method))
    if methods and (isinstance(gate, Switch) or gate.base):
        where = f"genes.{name}" if isinstance(gate, Switch) else f"genes.{name}.base"
        return [
            f"{where}: may set all weights to 0, of which {methods} does not make the base; take a method that "
            "adds to the base, like task_arithmetic (with normalize it averages)"
        ]
    if methods and _has_weight_0(space):
        return [
            f"genes.{name}: may choose an expert of weight 0, which alone is no model to {methods}; keep "
            "weights above 0"
        ]
    return []


def _has_weight_0(space: Space) -> bool:
    """Whether some expert's weight, searched or fixed, may be 0."""
    gene = space.numbers.get("weight")
    return gene.low <= 0.0 <= gene.high if gene else _has_0(space.fixed.get("weight"))


def _has_0(value: Any) -> bool:
    """Whether a value under `fixed` is 0 somewhere."""
    if isinstance(value, Mapping | list):
        return any(map(_has_0, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, int | float) and value == 0


# --- what is fixed, and what is missing --------------------------------------------------------------------


def _fixed_faults(space: Space, parameters: Mapping[str, Any]) -> list[str]:
    """Faults of the keys under `fixed`."""
    options = {option for method in space.methods for option in plugins.load("methods", method).OPTIONS}
    faults = []
    for name, value in space.fixed.items():
        if name not in {*parameters, *options, *space.methods}:
            faults.append(
                f"fixed.{name}: {_either(space)} has no such key.{suggest(name, [*parameters, *options])}"
            )
        elif name in space.numbers:
            faults.append(f"fixed.{name}: is a gene as well")
        elif name in options and not isinstance(value, bool):
            faults.append(f"fixed.{name}: must be true or false")
    return faults


def _missing_faults(space: Space, parameters: Mapping[str, Any]) -> list[str]:
    """Parameters without a default that are neither searched nor fixed; weights beside a gate have one, 1."""
    given = {*space.numbers, *space.fixed, *(["weight"] if space.gates else [])}
    return [
        f"genes.{parameter.name}: {_either(space)} needs it, here or under fixed"
        for parameter in parameters.values()
        if parameter.default is None and parameter.name not in given
    ]
