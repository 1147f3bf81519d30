"""The search space: which numbers and choices are searched, as a file says it.

A gene says along which axes it varies (`per`): layer, module, expert. Each combination is one coordinate of
the genome, named like `weight.g0.attention.maths`. Besides the method's coefficients two genes are choices that act
on the experts' weights: `switch` says whether an expert takes part, `source` which one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from evomerge import plugins
from evomerge.files.schema import Strict
from evomerge.searching.spaces.faults import space_faults
from evomerge.searching.spaces.genes import Gene, SourceGene, Switch, parse_switch


class Genes(Strict):
    """Parameter -> gene, and the two genes that act on the experts' weights."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Gene] = Field(init=False)

    switch: Switch | None = None
    source: SourceGene | None = None


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
        layers: how genes with `layer` in `per` spread over depth.
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
    def method_by_module(self) -> bool:
        """Whether each module group has a method of its own to search."""
        return isinstance(self.method, MethodGene) and bool(self.method.per)

    @property
    def anchored(self) -> bool:
        """Whether values are interpolated over depth, between anchors."""
        return self.layers.anchors is not None

    @property
    def numbers(self) -> dict[str, Gene]:
        """Parameter -> gene, of all parameters that are searched."""
        return self.genes.__pydantic_extra__

    @property
    def gates(self) -> dict[str, Switch | SourceGene]:
        """`switch` or `source` -> gene: the choices that act on the experts' weights."""
        genes = {"switch": self.genes.switch, "source": self.genes.source}
        return {name: gene for name, gene in genes.items() if gene is not None}

    @model_validator(mode="after")
    def _sound(self) -> SearchSpace:
        if faults := space_faults(self):
            raise ValueError("\n".join(faults))
        return self

    def options(self, methods: Sequence[str]) -> dict[str, Any]:
        """The options of some methods that `fixed` gives, as a recipe takes them."""
        known = {option for method in methods for option in plugins.load("methods", method).OPTIONS}
        return {name: value for name, value in self.fixed.items() if name in known or name in methods}


def parse_genome(value: Any) -> Any:
    """A genome from a YAML file, which takes a bare `on` or `off` for a truth value."""
    return {key: parse_switch(one) for key, one in value.items()} if isinstance(value, Mapping) else value
