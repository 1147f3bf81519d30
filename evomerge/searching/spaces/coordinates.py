"""A search space's coordinates: each gene laid over the depth, the module groups and the experts of the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from evomerge.errors import ConfigError
from evomerge.models.tensor_names import TEXT_MODULES
from evomerge.recipes.canonical import expert_faults
from evomerge.searching.spaces.genes import (
    BASE,
    MIX,
    OFF,
    ON,
    Coordinate,
    SourceGene,
    Switch,
    coordinate_name,
)
from evomerge.searching.spaces.space import SearchSpace


def lay_coordinates(space: SearchSpace, experts: Sequence[str], layers: int) -> list[Coordinate]:
    """The coordinates of a space's genes, in a fixed order: methods, then choices of experts, then numbers.

    Args:
        experts: the experts' names, sorted.
        layers: how many layers the models have.

    Raises:
        ConfigError: the space does not fit the models, with all faults.
    """
    if faults := _fit_faults(space, experts, layers):
        raise ConfigError("space", faults)
    laid: list[Coordinate] = []
    for whole, per in _genes(space, experts):
        depths = _depths(space, layers) if "layer" in per else [("", None)]
        modules = _modules(space) if "module" in per else [""]
        own = experts if "expert" in per else [""]
        for (label, depth), module, expert in product(depths, modules, own):
            places = [place for place in (label, module, expert) if place]
            name = coordinate_name(whole.name, places)
            laid.append(replace(whole, name=name, depth=depth, module=module, expert=expert))
    return laid


def _genes(space: SearchSpace, experts: Sequence[str]) -> Iterator[tuple[Coordinate, Sequence[str]]]:
    """Each gene as one coordinate for the whole model, and the axes along which there are more."""
    if not isinstance(space.method, str):
        yield Coordinate("method", 0.0, 1.0, space.methods[0], False, space.methods), space.method.per
    for name, gate in space.gates.items():
        choices, first = _choices(gate, experts)
        yield Coordinate(name, 0.0, 1.0, first, False, choices), gate.per
    for name, gene in space.numbers.items():
        init = (gene.low + gene.high) / 2 if gene.init is None else gene.init
        number = Coordinate(name, gene.low, gene.high, init, gene.scale == "log", step=gene.step)
        yield replace(number, init=number.nearest(init)), gene.per


def _choices(gate: Switch | SourceGene, experts: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The categories of a switch or a source, and the one that the search starts with."""
    if isinstance(gate, Switch):
        return (ON, OFF), gate.init
    choices = (*experts, *[BASE] * gate.base, *[MIX] * gate.mix)
    return choices, MIX if gate.mix else choices[0]


def _depths(space: SearchSpace, layers: int) -> list[tuple[str, int | None]]:
    """Each place on the layer axis: how a name has it, like `g0`, and its number."""
    if space.layers.anchors is not None:
        letter, count = "a", space.layers.anchors
    elif space.layers.groups == "each":
        letter, count = "l", layers
    else:
        assert isinstance(space.layers.groups, int)
        letter, count = "g", space.layers.groups
    return [(f"{letter}{number}", number) for number in range(count)]


def _modules(space: SearchSpace) -> list[str]:
    """The places on the module axis: those that the space names, and `other` for the groups that it does not."""
    named = list(space.modules)
    return named if set(TEXT_MODULES) <= set(named) else [*(m for m in named if m != "other"), "other"]


def _fit_faults(space: SearchSpace, experts: Sequence[str], layers: int) -> list[str]:
    """What of a space does not fit the models."""
    faults = []
    groups = space.layers.groups
    if isinstance(groups, int) and groups > layers:
        faults.append(f"layers.groups: is {groups}, but the model has {layers} layers")
    if (space.layers.anchors or 0) > layers:
        faults.append(f"layers.anchors: is {space.layers.anchors}, but the model has {layers} layers")
    for method in space.methods:
        faults += expert_faults(method, len(experts))
    if source := space.genes.source:
        faults += [
            f"experts.{name}: is what a source may be besides an expert; name the expert otherwise"
            for name in (BASE, MIX)
            if name in experts
        ]
        if len(_choices(source, experts)[0]) < 2:
            faults.append(
                "genes.source: there is but one expert to choose; give it `base: true`, or another expert"
            )
    return faults
