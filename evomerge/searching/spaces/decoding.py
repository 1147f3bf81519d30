"""A search space laid over models: its coordinates, and the recipe that a genome decodes to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evomerge.errors import ConfigError
from evomerge.models.source import Dtype, Source, Vocabulary
from evomerge.recipes.canonical import ANY, Table, shared_parameters
from evomerge.recipes.recipe import Recipe
from evomerge.searching.spaces.coordinates import lay_coordinates
from evomerge.searching.spaces.depth import Stencil, gather, spread, stencil
from evomerge.searching.spaces.gating import gated, through
from evomerge.searching.spaces.genes import MIX, ON, Coordinate, Genome, initial
from evomerge.searching.spaces.operator_genes import Operator
from evomerge.searching.spaces.space import SearchSpace

# Parameter -> row -> expert, or "" for all experts together -> derivatives by layer.
Slopes = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


@dataclass(frozen=True)
class CommonRecipe:
    """The models, and all else that the recipes of all candidates have in common.

    Attributes:
        experts: name -> checkpoint.
        layers: how many layers the models have.
        operators: those that act on every candidate.
    """

    base: Source
    experts: Mapping[str, Source]
    layers: int
    dtype: Dtype
    seed: int
    operators: tuple[Operator, ...] = ()
    vocabulary: Vocabulary | None = None


@dataclass(frozen=True)
class LaidOut:
    """A search space laid over models. What follows from the two is worked out once, at first use.

    laid = LaidOut(space, common)
    recipe = laid.decode(initial(laid.coordinates))
    """

    space: SearchSpace
    common: CommonRecipe

    @cached_property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """The genome's coordinates, in a fixed order: the space's, then the operators'.

        Raises:
            ConfigError: the space does not fit the models, with all faults.
        """
        return (*self._laid, *(point for operator in self.common.operators for point in operator.coordinates()))

    def of(self, gene: str) -> list[Coordinate]:
        """The coordinates of one gene of the space; [] if the space does not search it."""
        return [point for point in self._laid if point.gene == gene]

    def everywhere(self, gene: str, value: float | str) -> Genome:
        """The part of a genome that gives all coordinates of a gene one value."""
        return dict.fromkeys((point.name for point in self.of(gene)), value)

    def representatives(self) -> list[Recipe]:
        """A recipe for each method that candidates may have: all tensors merged by it, from the space's `init`."""
        genome = initial(self.coordinates)
        return [self.decode({**genome, **self.everywhere("method", method)}) for method in self.space.methods]

    def decode(self, genome: Mapping[str, float | str]) -> Recipe:
        """The recipe that a genome means. A pure function.

        Raises:
            ConfigError: a coordinate is missing or does not belong to the space.
        """
        self._check(genome)
        method = self._method(genome)
        methods = [method] if isinstance(method, str) else sorted(set(method.values()))
        parameters, gates_act = self._parameters(genome, methods)
        content = {
            "method": method,
            "base": self.common.base,
            "experts": dict(self.common.experts),
            "dtype": self.common.dtype,
            "layers": self.common.layers,
            "seed": self.common.seed,
            "vocabulary": self.common.vocabulary,
            "options": self.space.options(methods),
            "parameters": parameters,
            "operators": [operator.step(genome) for operator in self.common.operators],
        }
        recipe = Recipe.model_validate(content)
        if not gates_act:
            return recipe
        weights = gated(recipe.parameters["weight"], self._openings(genome), self.common.layers)
        return Recipe.model_validate({**content, "parameters": {**parameters, "weight": weights}})

    def pull_back(self, genome: Mapping[str, float | str], tables: Slopes) -> dict[str, float]:
        """The derivative in each of a genome's numbers, from those in its recipe's values: `decode`, transposed.

        Args:
            tables: the derivatives in the recipe's values, see `merging.gradients.Gradient.tables`. A parameter
                that is not there, because the genome's method lacks it, has derivative 0.

        Returns:
            coordinate name -> derivative in its value (not in the unit interval). Choices have no derivative and
            are left out.

        Raises:
            ConfigError: a coordinate is missing or does not belong to the space.
        """
        self._check(genome)
        if self.space.gates and "weight" in tables:
            tables = {**tables, "weight": through(tables["weight"], self._openings(genome))}
        derivatives: dict[str, float] = {}
        for gene in self.space.numbers:
            strands = self._strands[gene]
            modules = [module for module, _ in strands]
            for (module, expert), points in strands.items():
                rows = [row for key, row in tables.get(gene, {}).items() if _covers(module, key, modules)]
                columns = [row[expert] for row in rows] if expert else [own for row in rows for own in row.values()]
                slopes = [math.fsum(layer) for layer in zip(*columns, strict=True)] or [0.0] * self.common.layers
                shares = self._stencil(points)
                derivatives |= {point.name: gather(slopes, shares, at) for at, point in enumerate(points)}
        return derivatives

    @cached_property
    def _laid(self) -> list[Coordinate]:
        """The coordinates of the space's own genes."""
        return lay_coordinates(self.space, sorted(self.common.experts), self.common.layers)

    @cached_property
    def _names(self) -> frozenset[str]:
        """The names of all coordinates."""
        return frozenset(point.name for point in self.coordinates)

    @cached_property
    def _strands(self) -> dict[str, dict[tuple[str, str], list[Coordinate]]]:
        """Gene -> (module, expert), each "" for all -> the coordinates from the first layer to the last."""
        genes: dict[str, dict[tuple[str, str], list[Coordinate]]] = {}
        for point in self._laid:
            genes.setdefault(point.gene, {}).setdefault((point.module, point.expert), []).append(point)
        return genes

    def _stencil(self, points: Sequence[Coordinate]) -> Stencil:
        """How the values of a strand's points spread over the layers."""
        anchored = self.space.anchored and points[0].depth is not None
        return stencil(len(points), self.common.layers, anchored=anchored)

    def _check(self, genome: Mapping[str, float | str]) -> None:
        """Refuses a genome of another space."""
        if self._names != set(genome):
            odd = sorted(self._names ^ set(genome))
            raise ConfigError("genome", [f"does not fit the space in {', '.join(odd[:5])}"])

    def _method(self, genome: Mapping[str, float | str]) -> str | dict[str, str]:
        """The genome's method, or row -> method where each module group has its own."""
        if isinstance(self.space.method, str):
            return self.space.method
        return {_row(point.module): str(genome[point.name]) for point in self.of("method")}

    def _parameters(self, genome: Mapping[str, float | str], methods: Sequence[str]) -> tuple[dict[str, Any], bool]:
        """The parameters of these methods, as a recipe takes them, and whether switches or sources act on them."""
        wanted, _ = shared_parameters(methods)
        parameters = {name: value for name, value in self.space.fixed.items() if name in wanted}
        for name in self.space.numbers:
            if name in wanted:
                parameters[name] = self._table(name, genome, per_expert=wanted[name].per_expert)
        gates_act = bool(self.space.gates) and "weight" in wanted
        if gates_act and wanted["weight"].default is None:
            parameters.setdefault("weight", 1.0)
        return parameters, gates_act

    def _openings(self, genome: Mapping[str, float | str]) -> Table:
        """What a genome's switches or source leave of each weight: row -> expert -> 1 or 0 by layer."""
        if self.space.genes.switch:
            shares = {name: float(choice == ON) for name, choice in genome.items()}
            return self._table("switch", shares, per_expert=True)
        openings: Table = {}
        for expert in self.common.experts:
            shares = {name: float(choice in (expert, MIX)) for name, choice in genome.items()}
            for row, values in self._table("source", shares, per_expert=False).items():
                openings.setdefault(row, {})[expert] = values
        return openings

    def _table(self, gene: str, values: Mapping[str, float | str], *, per_expert: bool) -> dict[str, Any]:
        """A gene's values by row and layer, from those by coordinate name; also by expert if `per_expert`."""
        table: Table = {}
        for (module, expert), points in self._strands[gene].items():
            numbers = [float(values[point.name]) for point in points]
            table.setdefault(_row(module), {})[expert] = spread(numbers, self._stencil(points))
        if not per_expert:
            return {row: experts[""] for row, experts in table.items()}
        everyone = self.common.experts
        return {row: dict.fromkeys(everyone, own[""]) if "" in own else own for row, own in table.items()}


def _row(module: str) -> str:
    """The row of a recipe's table for a coordinate's module: `other` stands for every group that is not named."""
    return ANY if module in ("", "other") else module


def _covers(module: str, row: str, modules: Sequence[str]) -> bool:
    """Whether a coordinate of `module`, one of the gene's `modules`, gives the values of a row.

    row: a pattern or a module group.
    """
    return row == module or (_row(module) == ANY and row not in modules)


# --- for a single use --------------------------------------------------------------------------------------


def coordinates(space: SearchSpace, common: CommonRecipe) -> list[Coordinate]:
    """See `LaidOut.coordinates`."""
    return list(LaidOut(space, common).coordinates)


def representatives(space: SearchSpace, common: CommonRecipe) -> list[Recipe]:
    """See `LaidOut.representatives`."""
    return LaidOut(space, common).representatives()


def decode(space: SearchSpace, common: CommonRecipe, genome: Mapping[str, float | str]) -> Recipe:
    """See `LaidOut.decode`."""
    return LaidOut(space, common).decode(genome)


def pull_back(
    space: SearchSpace, common: CommonRecipe, genome: Mapping[str, float | str], tables: Slopes
) -> dict[str, float]:
    """See `LaidOut.pull_back`."""
    return LaidOut(space, common).pull_back(genome, tables)
