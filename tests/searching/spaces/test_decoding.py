"""Genomes decode to recipes."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.models.tensor_names import Place, places
from evomerge.searching.spaces import decoding
from evomerge.searching.spaces.coordinates import lay_coordinates
from evomerge.searching.spaces.decoding import LaidOut
from evomerge.searching.spaces.genes import Coordinate, initial
from tests.helpers.made_spaces import GENE, SEVERAL, decode, make, models, weight


def test_each_coordinate_reaches_its_own_layers_modules_and_expert() -> None:
    recipe = decode(make(), models(), **{"weight.g1.mlp.b": 0.9})
    for layer in range(4):
        for module in ("attention", "mlp", "norm", "embedding", "head", "other"):
            changed = layer >= 2 and module == "mlp"
            assert weight(recipe, layer, module) == (0.5, 0.9 if changed else 0.5)


def test_modules_that_are_not_listed_share_the_set_called_other() -> None:
    recipe = decode(make(), models(), **{"weight.g0.other.a": 0.1})
    assert {weight(recipe, 0, module)[0] for module in ("norm", "embedding", "head", "other")} == {0.1}
    assert weight(recipe, 0, "attention")[0] == 0.5


def test_each_layer_may_have_genes_of_its_own() -> None:
    chosen = make(layers="each", modules=[], genes={"weight": {**GENE, "per": ["layer"]}})
    recipe = decode(chosen, models(3), **{"weight.l2": 0.8})
    assert [weight(recipe, layer, "mlp") for layer in range(3)] == [(0.5, 0.5), (0.5, 0.5), (0.8, 0.8)]


def test_genomes_that_mean_the_same_are_one_candidate() -> None:
    wide, narrow = make(), make(modules=[], genes={"weight": GENE})
    assert decode(wide, models()).sha256 == decode(narrow, models()).sha256


def test_fixed_values_reach_the_recipe() -> None:
    recipe = decode(make(fixed={"lambda": 0.7, "normalize": True}), models())
    assert recipe.coefficients(Place(0, "mlp", inside=True))["lambda"] == (0.7,)
    assert recipe.options["task_arithmetic"]["normalize"] is True


def test_a_genome_of_another_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit the space"):
        decoding.decode(make(), models(), {"weight": 0.5})


def test_a_tensor_pattern_has_genes_of_its_own_beside_module_groups() -> None:
    chosen = make(modules=["*q_proj*", "attention"], genes={"weight": {**GENE, "per": ["module"]}})
    names = [c.name for c in decoding.coordinates(chosen, models())]
    assert names == ["weight.*q_proj*", "weight.attention", "weight.other"]
    recipe = decode(chosen, models(), **{"weight.*q_proj*": 0.1, "weight.attention": 0.2, "weight.other": 0.3})
    found = places([f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up")])
    assert [recipe.coefficients(place)["weight"][0] for place in found.values()] == [0.1, 0.2, 0.3]


def test_a_search_may_choose_the_method_for_the_whole_model() -> None:
    chosen = make(**SEVERAL)
    points = decoding.coordinates(chosen, models())
    assert points[0] == Coordinate("method", 0.0, 1.0, "dare_ties", False, ("dare_ties", "task_arithmetic"))
    assert decode(chosen, models()).method == "dare_ties"
    recipe = decode(chosen, models(), method="task_arithmetic")
    assert recipe.method == "task_arithmetic"
    assert set(recipe.parameters) == {"weight", "lambda"}  # the density is dare_ties' alone


def test_genes_that_the_chosen_method_lacks_make_no_other_candidate() -> None:
    chosen = make(**SEVERAL)
    recipes = [decode(chosen, models(), method="task_arithmetic", density=value) for value in (0.2, 0.9)]
    assert recipes[0].sha256 == recipes[1].sha256
    assert decode(chosen, models(), density=0.2).sha256 != decode(chosen, models(), density=0.9).sha256


def test_a_search_may_choose_the_method_per_module_group() -> None:
    method = {"choose": ["ties", "task_arithmetic"], "per": ["module"]}
    chosen = make(**{**SEVERAL, "method": method, "modules": ["*q_proj*", "mlp"]})
    recipe = decode(chosen, models(), **{"method.mlp": "task_arithmetic"})
    assert recipe.method == {"*q_proj*": "ties", "mlp": "task_arithmetic", "*": "ties"}


def test_options_are_fixed_for_all_methods_or_for_one() -> None:
    chosen = make(**SEVERAL, fixed={"normalize": True, "dare_ties": {"rescale": False}})
    assert decode(chosen, models()).options == {"dare_ties": {"normalize": True, "rescale": False}}
    assert decode(chosen, models(), method="task_arithmetic").options == {"task_arithmetic": {"normalize": True}}


def test_equal_stepped_genes_are_equal_recipes() -> None:
    chosen = make(genes={"weight": {**GENE, "step": 0.1}})
    (point,) = decoding.coordinates(chosen, models())
    recipes = [decoding.decode(chosen, models(), {"weight": point.from_unit(unit)}) for unit in (0.28, 0.36)]
    assert recipes[0].sha256 == recipes[1].sha256
    assert weight(recipes[0], 0, "mlp") == (0.3, 0.3)


def test_a_space_that_is_laid_out_builds_its_coordinates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def counting(*args: Any) -> list[Coordinate]:
        built.append(args)
        return lay_coordinates(*args)

    monkeypatch.setattr(decoding, "lay_coordinates", counting)
    laid = LaidOut(make(), models())
    for value in (0.1, 0.2):
        laid.decode({**initial(laid.coordinates), "weight.g0.mlp.a": value})
        laid.pull_back(initial(laid.coordinates), {})
    assert len(built) == 1


def test_a_space_that_is_laid_out_gives_what_the_functions_give() -> None:
    chosen, common = make(**SEVERAL), models()
    laid = LaidOut(chosen, common)
    genome = initial(laid.coordinates)
    tables = {"weight": {"mlp": {"a": [1.0] * 4, "b": [2.0] * 4}}}
    assert list(laid.coordinates) == decoding.coordinates(chosen, common)
    assert laid.decode(genome) == decoding.decode(chosen, common, genome)
    assert laid.pull_back(genome, tables) == decoding.pull_back(chosen, common, genome, tables)
    assert laid.representatives() == decoding.representatives(chosen, common)


def test_a_gene_may_be_set_everywhere() -> None:
    laid = LaidOut(make(), models())
    assert laid.everywhere("weight", 0.25) == {point.name: 0.25 for point in laid.of("weight")}
    assert len(laid.of("weight")) == 12
    assert laid.of("density") == []
    assert laid.everywhere("density", 0.5) == {}
