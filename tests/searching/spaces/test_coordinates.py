"""A space laid over models: which coordinates there are, and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.files import yaml
from evomerge.models.source import Source
from evomerge.searching.spaces import decoding
from evomerge.searching.spaces.decoding import CommonRecipe
from evomerge.searching.spaces.genes import Coordinate
from evomerge.searching.spaces.space import SearchSpace
from tests.helpers.made_spaces import GENE, SOURCE, gated, make, models


def test_coordinates_are_the_product_of_the_axes() -> None:
    names = [c.name for c in decoding.coordinates(make(), models())]
    assert len(names) == len(set(names)) == 2 * 3 * 2
    assert names[0] == "weight.g0.attention.a"
    assert names[-1] == "weight.g1.other.b"


@pytest.mark.parametrize(
    ("layers", "depths"), [({"groups": 2}, {0, 1}), ("each", {0, 1, 2, 3}), ({"anchors": 3}, {0, 1, 2})]
)
def test_a_coordinate_knows_its_gene_depth_module_and_expert(layers: Any, depths: set[int]) -> None:
    points = decoding.coordinates(make(layers=layers, modules=["*q.proj*", "mlp"]), models())
    assert {point.gene for point in points} == {"weight"}
    assert {point.depth for point in points} == depths
    assert {point.module for point in points} == {"*q.proj*", "mlp", "other"}
    assert {point.expert for point in points} == {"a", "b"}
    for point in points:
        letter = point.name.removeprefix("weight.")[0]
        assert point.name == f"weight.{letter}{point.depth}.{point.module}.{point.expert}"


def test_a_coordinate_that_holds_for_all_has_no_place_on_that_axis() -> None:
    (point,) = decoding.coordinates(make(modules=[], genes={"weight": GENE}), models())
    assert (point.gene, point.depth, point.module, point.expert) == ("weight", None, "", "")


def test_methods_come_first_then_choices_then_numbers() -> None:
    genes = {"density": {"low": 0.1, "high": 1.0}, "weight": GENE, "switch": {"per": ["expert"]}}
    chosen = make(method=["ties", "dare_ties"], genes=genes)
    names = [point.name for point in decoding.coordinates(chosen, models())]
    assert names == ["method", "switch.a", "switch.b", "density", "weight"]


def test_a_space_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers.groups: is 9, but the model has 4 layers"):
        decoding.coordinates(make(layers={"groups": 9}), models(4))
    slerp = make(method="slerp", genes={"t": GENE})
    with pytest.raises(ConfigError, match="slerp takes exactly 1 expert"):
        decoding.coordinates(slerp, models())


def test_a_step_gives_whole_numbers_and_starts_at_the_value_nearest_the_middle() -> None:
    genes: dict[str, dict[str, Any]] = {
        "weight": {"low": 0.0, "high": 1.0, "step": 0.4 / 2},
        "lambda": {"low": 1, "high": 4, "step": 1},
    }
    points = {c.name: c for c in decoding.coordinates(make(genes=genes), models())}
    assert [points["lambda"].from_unit(unit) for unit in (0.1, 0.4, 0.6, 0.9)] == [1.0, 2.0, 3.0, 4.0]
    assert points["weight"].init in (0.4, 0.6)
    genes["weight"]["init"] = 0.6000000000000001
    assert {c.name: c.init for c in decoding.coordinates(make(genes=genes), models())}["weight"] == 0.6


def test_switches_and_sources_are_choices_with_a_name_for_each_combination() -> None:
    points = decoding.coordinates(gated({"switch": {"per": ["layer", "expert"], "init": "off"}}), models())
    assert [c.name for c in points if c.choices] == [
        f"switch.g{group}.{expert}" for group in (0, 1) for expert in "ab"
    ]
    assert points[0] == Coordinate("switch.g0.a", 0.0, 1.0, "off", False, ("on", "off"), depth=0, expert="a")
    points = decoding.coordinates(gated({"source": {"per": ["layer", "module"]}}), models())
    assert [c.name for c in points[:3]] == ["source.g0.attention", "source.g0.mlp", "source.g0.other"]
    assert (points[0].choices, points[0].init) == (("a", "b"), "a")
    points = decoding.coordinates(gated(SOURCE), models())
    assert (points[0].choices, points[0].init) == (("a", "b", "base", "mix"), "mix")


@pytest.mark.parametrize(("written", "init"), [("on", "on"), ("off", "off"), ('"off"', "off")])
def test_a_switch_may_be_written_as_yaml_writes_it(tmp_path: Any, written: str, init: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"method: ties\ngenes: {{switch: {{init: {written}}}}}\nfixed: {{density: 0.5}}\n")
    chosen = SearchSpace.model_validate(yaml.read_yaml(path))
    assert decoding.coordinates(chosen, models())[0].init == init
    assert SearchSpace.model_validate(chosen.model_dump(mode="json", exclude_none=True)) == chosen


def test_a_source_that_leaves_no_choice_or_has_two_meanings_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"genes.source: there is but one expert to choose"):
        decoding.coordinates(make(genes={"source": {}}), models(experts="a"))
    sources = {name: Source(model=name) for name in ("base", "other")}
    common = CommonRecipe(Source(model="base"), sources, 4, "float32", 0)
    with pytest.raises(ConfigError, match=r"experts.base: is what a source may be besides an expert"):
        decoding.coordinates(make(genes=SOURCE), common)
