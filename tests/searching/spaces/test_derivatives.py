"""Derivatives are pulled back from a recipe's values to a genome's numbers."""

from __future__ import annotations

import random
from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.models.tensor_names import MODULES
from evomerge.searching.spaces import decoding
from evomerge.searching.spaces.genes import initial
from tests.helpers.made_spaces import (
    AXES,
    DEPTHS,
    GENE,
    SEVERAL,
    SOURCE,
    SWITCH,
    gated,
    inner,
    make,
    models,
    some_slope,
    tables_of,
)


@pytest.mark.parametrize("per", AXES, ids=str)
@pytest.mark.parametrize("layers", DEPTHS, ids=str)
@pytest.mark.parametrize("modules", [["attention", "mlp"], ["*q_proj*", "attention"], list(MODULES)], ids=str)
def test_derivatives_are_pulled_back_as_values_are_decoded(
    per: tuple[str, ...], layers: Any, modules: list[str]
) -> None:
    """Decoding is linear, so a pulled-back derivative is the change of Σ derivative · value."""
    genes = {
        "weight": {**GENE, "per": list(per)},
        "density": {"low": 0.1, "high": 1.0, "scale": "log", "per": ["layer"]},
        "lambda": {**GENE, "per": [axis for axis in per if axis != "expert"]},
    }
    chosen = make(method="ties", layers=layers, modules=modules, genes=genes)
    common, draw = models(7), random.Random(0)
    genome = {c.name: draw.uniform(c.low, c.high) for c in decoding.coordinates(chosen, common)}
    tables = tables_of(decoding.decode(chosen, common, genome), 7, some_slope)
    found = decoding.pull_back(chosen, common, genome, tables)
    assert set(found) == set(genome)
    before = inner(decoding.decode(chosen, common, genome), tables, 7)
    for name, slope in found.items():
        moved = {**genome, name: genome[name] - 0.05}
        after = inner(decoding.decode(chosen, common, moved), tables, 7)
        assert (before - after) / 0.05 == pytest.approx(slope, abs=1e-9), name


EVERYWHERE = 4.0 * len(MODULES)  # a slope of 1 in each of four layers and each module group


def test_equal_values_have_derivatives_of_their_own() -> None:
    chosen, common = make(), models()
    genome = initial(decoding.coordinates(chosen, common))
    recipe = decoding.decode(chosen, common, genome)
    assert list(recipe.parameters["weight"]) == ["*"]
    found = decoding.pull_back(
        chosen, common, genome, tables_of(recipe, 4, lambda _, row, *__: float(row == "mlp"))
    )
    assert {name for name, slope in found.items() if slope} == {c for c in genome if ".mlp." in c}
    assert found["weight.g0.mlp.a"] == 2.0  # two layers


def test_choices_have_no_derivative_and_genes_without_a_parameter_have_0() -> None:
    chosen, common = make(**SEVERAL), models()
    genome = {**initial(decoding.coordinates(chosen, common)), "method": "task_arithmetic"}
    tables = tables_of(decoding.decode(chosen, common, genome), 4, lambda *_: 1.0)
    found = decoding.pull_back(chosen, common, genome, tables)
    assert found == {"weight.a": EVERYWHERE, "weight.b": EVERYWHERE, "density": 0.0}


def test_derivatives_for_a_genome_of_another_space_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit the space"):
        decoding.pull_back(make(), models(), {"weight": 0.5}, {})


@pytest.mark.parametrize("genes", [{"switch": {"per": ["layer", "module", "expert"]}}, SOURCE], ids=str)
@pytest.mark.parametrize("per", AXES, ids=str)
@pytest.mark.parametrize("modules", [["attention", "mlp"], ["*q_proj*", "attention"], list(MODULES)], ids=str)
def test_derivatives_go_through_the_weights_of_those_that_take_part(
    genes: dict[str, Any], per: tuple[str, ...], modules: list[str]
) -> None:
    chosen = make(modules=modules, genes={**genes, "weight": {**GENE, "per": list(per)}})
    common, draw = models(5), random.Random(0)
    points = decoding.coordinates(chosen, common)
    genome = {c.name: draw.choice(c.choices) if c.choices else draw.uniform(0.1, 1.0) for c in points}
    recipe = decoding.decode(chosen, common, genome)
    tables = tables_of(recipe, 5, some_slope)
    found = decoding.pull_back(chosen, common, genome, tables)
    assert set(found) == {c.name for c in points if not c.choices}
    before = inner(recipe, tables, 5)
    for name, slope in found.items():
        after = inner(decoding.decode(chosen, common, {**genome, name: float(genome[name]) - 0.05}), tables, 5)
        assert (before - after) / 0.05 == pytest.approx(slope, abs=1e-9), name


def test_the_derivative_in_the_weight_of_an_expert_that_is_off_is_0() -> None:
    chosen, common = gated(SWITCH), models()
    genome = {**initial(decoding.coordinates(chosen, common)), "switch.a": "off"}
    tables = tables_of(decoding.decode(chosen, common, genome), 4, lambda *_: 1.0)
    assert decoding.pull_back(chosen, common, genome, tables) == {"weight.a": 0.0, "weight.b": EVERYWHERE}
