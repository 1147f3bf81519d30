"""Switches and sources act on the experts' weights."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.models.tensor_names import MODULES, Place, places
from tests.helpers.made_spaces import GENE, SOURCE, SWITCH, WEIGHT, decode, gated, make, models, weight


def test_an_expert_that_is_off_has_weight_0_and_the_others_keep_theirs() -> None:
    chosen = gated({"switch": {"per": ["layer", "module", "expert"]}})
    recipe = decode(chosen, models(), **{"switch.g1.mlp.a": "off", "weight.b": 0.5})
    for layer in range(4):
        for module in MODULES:
            off = layer >= 2 and module == "mlp"
            assert weight(recipe, layer, module) == (0.0 if off else 0.75, 0.5)


def test_a_switch_without_experts_switches_them_all() -> None:
    recipe = decode(gated({"switch": {"per": ["layer"]}}), models(), **{"switch.g0": "off"})
    assert [weight(recipe, layer, "mlp") for layer in range(4)] == [(0.0, 0.0)] * 2 + [(0.75, 0.75)] * 2


def test_with_everything_on_or_mixed_the_recipe_is_that_without_choices() -> None:
    plain = decode(make(genes=WEIGHT), models()).sha256
    for genes in (SWITCH, SOURCE, {"switch": {"per": ["module"]}}):
        assert decode(gated(genes), models()).sha256 == plain


def test_a_source_keeps_the_weight_of_the_chosen_expert_alone() -> None:
    chosen = gated(SOURCE, layers="each")
    recipe = decode(chosen, models(), **{"source.l0": "a", "source.l1": "b", "source.l2": "base", "weight.b": 0.5})
    found = [weight(recipe, layer, "mlp") for layer in range(4)]
    assert found == [(0.75, 0.0), (0.0, 0.5), (0.0, 0.0), (0.75, 0.5)]


def test_sources_by_module_follow_patterns_as_weights_do() -> None:
    genes = {"source": {"per": ["module"]}, "weight": {**GENE, "per": ["module", "expert"]}}
    chosen = make(genes=genes, modules=["*q_proj*", "attention"])
    recipe = decode(
        chosen, models(), **{"source.attention": "b", "weight.attention.b": 0.1, "weight.*q_proj*.a": 0.2}
    )
    found = places([f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up")])
    values = [recipe.coefficients(place)["weight"] for place in found.values()]
    assert values == [(0.2, 0.0), (0.0, 0.1), (0.5, 0.0)]


def test_switches_may_follow_patterns_where_weights_do_not() -> None:
    chosen = gated({"switch": {"per": ["module", "expert"]}}, modules=["*q_proj*", "attention"])
    recipe = decode(chosen, models(), **{"switch.*q_proj*.a": "off", "switch.other.b": "off"})
    found = places([f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up")])
    values = [recipe.coefficients(place)["weight"] for place in found.values()]
    assert values == [(0.0, 0.75), (0.75, 0.75), (0.75, 0.0)]


@pytest.mark.parametrize(
    ("fixed", "wanted"),
    [
        ({}, (0.0, 1.0)),
        ({"weight": 0.5}, (0.0, 0.5)),
        ({"weight": {"a": 0.25, "b": [0.5, 0.625, 0.75, 0.875]}}, (0.0, 0.75)),
        ({"weight": {"mlp": 0.25, "*": {"a": 0.5, "b": 0.75}}}, (0.0, 0.25)),
        ({"weight": {"*up*": 0.25, "*": 1.5}}, (0.0, 0.25)),
    ],
)
def test_weights_that_are_not_searched_are_switched_as_well(
    fixed: dict[str, Any], wanted: tuple[float, ...]
) -> None:
    recipe = decode(make(genes=SWITCH, fixed=fixed), models(), **{"switch.a": "off"})
    place = Place(2, "mlp", inside=True, name="model.layers.2.mlp.up.weight")
    assert recipe.coefficients(place)["weight"] == wanted


def test_patterns_of_fixed_weights_that_cross_those_of_the_switches_are_refused() -> None:
    genes = {"switch": {"per": ["module", "expert"]}}
    chosen = make(genes=genes, fixed={"weight": {"*up*": 0.25, "*": 1.5}})
    with pytest.raises(ConfigError, match=r"fixed.weight: has not the patterns that modules has"):
        decode(chosen, models())
    same = make(genes=genes, fixed={"weight": {"*up*": 0.25, "*": 1.5}}, modules=["*up*"])
    recipe = decode(same, models(), **{"switch.*up*.a": "off"})
    found = places([f"model.layers.0.mlp.{part}.weight" for part in ("up", "down")])
    assert [recipe.coefficients(place)["weight"] for place in found.values()] == [(0.0, 0.25), (1.5, 1.5)]


def test_weights_of_what_takes_no_part_make_no_other_candidate() -> None:
    chosen = gated(SWITCH)
    recipes = [decode(chosen, models(), **{"switch.a": "off", "weight.a": value}) for value in (0.3, 0.9)]
    assert recipes[0].sha256 == recipes[1].sha256


def test_switches_mean_nothing_to_a_method_without_weights() -> None:
    chosen = gated(SWITCH, method=["ties", "ram"], fixed={"density": 0.5})
    recipe = decode(chosen, models(), method="ram", **{"switch.a": "off"})
    assert set(recipe.parameters) == {"epsilon", "lambda"}


def test_a_linear_merge_may_have_sources_of_positive_weight() -> None:
    chosen = make(method="linear", genes={"source": {"per": ["layer"], "mix": True}, **WEIGHT})
    assert weight(decode(chosen, models(), **{"source.g0": "b"}), 0, "mlp") == (0.0, 0.75)
