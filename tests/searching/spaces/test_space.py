from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evomerge import plugins
from evomerge.errors import ConfigError
from evomerge.files import shipped, yaml
from evomerge.files.schema import faults_of
from evomerge.models.source import Source
from evomerge.models.tensor_names import MODULES, Place, places
from evomerge.recipes.recipe import Recipe
from evomerge.searching.spaces import decoding, depth, faults, known_points
from evomerge.searching.spaces.decoding import CommonRecipe, LaidOut
from evomerge.searching.spaces.genes import Coordinate, initial
from evomerge.searching.spaces.known_points import WantedWeight
from evomerge.searching.spaces.space import SearchSpace
from tests.helpers.merging import merge

GENE = {"low": 0.0, "high": 1.0}


def make(**changes: Any) -> SearchSpace:
    data: dict[str, Any] = {
        "method": "task_arithmetic",
        "layers": {"groups": 2},
        "modules": ["attention", "mlp"],
        "genes": {"weight": {**GENE, "per": ["layer", "module", "expert"]}},
    }
    return SearchSpace.model_validate({**data, **changes})


def frame(layers: int = 4, experts: str = "ab") -> CommonRecipe:
    sources = {name: Source(model=name, sha256=name * 64) for name in experts}
    return CommonRecipe(Source(model="base", sha256="0" * 64), sources, layers, "float32", 0)


def decode(chosen: SearchSpace, laid: CommonRecipe, **values: Any) -> Recipe:
    genome = initial(decoding.coordinates(chosen, laid))
    assert set(values) <= set(genome)
    return decoding.decode(chosen, laid, {**genome, **values})


def weight(recipe: Recipe, layer: int, module: str) -> tuple[float, ...]:
    return recipe.coefficients(Place(layer, module, inside=True))["weight"]


def test_coordinates_are_the_product_of_the_axes() -> None:
    names = [c.name for c in decoding.coordinates(make(), frame())]
    assert len(names) == len(set(names)) == 2 * 3 * 2
    assert names[0] == "weight.g0.attention.a"
    assert names[-1] == "weight.g1.other.b"


def test_each_coordinate_reaches_its_own_layers_modules_and_expert() -> None:
    recipe = decode(make(), frame(), **{"weight.g1.mlp.b": 0.9})
    for layer in range(4):
        for module in ("attention", "mlp", "norm", "embedding", "head", "other"):
            changed = layer >= 2 and module == "mlp"
            assert weight(recipe, layer, module) == (0.5, 0.9 if changed else 0.5)


def test_modules_that_are_not_listed_share_the_set_called_other() -> None:
    recipe = decode(make(), frame(), **{"weight.g0.other.a": 0.1})
    assert {weight(recipe, 0, module)[0] for module in ("norm", "embedding", "head", "other")} == {0.1}
    assert weight(recipe, 0, "attention")[0] == 0.5


@given(st.integers(1, 12), st.integers(1, 40))
def test_groups_are_contiguous_and_as_equal_as_can_be(groups: int, layers: int) -> None:
    if groups > layers:
        return
    values = depth.spread(list(range(groups)), depth.stencil(groups, layers))
    assert values == sorted(values)
    sizes = [values.count(group) for group in range(groups)]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.integers(6, 40))
def test_anchors_are_interpolated_and_met_at_both_ends(points: list[float], layers: int) -> None:
    values = depth.spread(points, depth.stencil(len(points), layers, anchored=True))
    assert len(values) == layers
    assert values[0] == pytest.approx(points[0])
    assert values[-1] == pytest.approx(points[-1])
    assert min(points) - 1e-9 <= min(values)
    assert max(values) <= max(points) + 1e-9


def test_each_layer_may_have_genes_of_its_own() -> None:
    chosen = make(layers="each", modules=[], genes={"weight": {**GENE, "per": ["layer"]}})
    recipe = decode(chosen, frame(3), **{"weight.l2": 0.8})
    assert [weight(recipe, layer, "mlp") for layer in range(3)] == [(0.5, 0.5), (0.5, 0.5), (0.8, 0.8)]


def test_genomes_that_mean_the_same_are_one_candidate() -> None:
    wide, narrow = make(), make(modules=[], genes={"weight": GENE})
    assert decode(wide, frame()).sha256 == decode(narrow, frame()).sha256


def test_fixed_values_reach_the_recipe() -> None:
    recipe = decode(make(fixed={"lambda": 0.7, "normalize": True}), frame())
    assert recipe.coefficients(Place(0, "mlp", inside=True))["lambda"] == (0.7,)
    assert recipe.options["task_arithmetic"]["normalize"] is True


@given(st.floats(0, 1), st.booleans())
def test_the_unit_interval_maps_onto_the_range_and_back(unit: float, log: bool) -> None:
    coordinate = Coordinate("x", 0.01, 10.0, 1.0, log)
    value = coordinate.from_unit(unit)
    assert 0.01 <= float(value) <= 10.0
    assert coordinate.to_unit(value) == pytest.approx(unit, abs=1e-9)


def test_units_outside_are_clipped_to_the_bounds() -> None:
    coordinate = Coordinate("x", -1.0, 3.0, 0.0, log=False)
    assert (coordinate.from_unit(-0.2), coordinate.from_unit(1.7)) == (-1.0, 3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "tie"}, "Did you mean 'ties'"),
        ({"modules": ["attn"]}, "modules: unknown module group 'attn'"),
        ({"genes": {}}, "nothing to search"),
        ({"genes": {"wait": GENE}}, "genes.wait: task_arithmetic has no such parameter. Did you mean 'weight'"),
        ({"genes": {"weight": {"low": 1.0, "high": 0.0}}}, "low must be below high"),
        ({"genes": {"weight": {**GENE, "init": 2.0}}}, "init must lie in [0, 1]"),
        ({"genes": {"weight": {**GENE, "scale": "log"}}}, "a log scale needs a positive low"),
        ({"genes": {"weight": {**GENE, "per": ["layer", "layer"]}}}, "genes.weight.per: names an axis twice"),
        ({"genes": {"weight": {**GENE, "step": 0.0}}}, "step must be positive, but is 0"),
        ({"genes": {"weight": {**GENE, "step": 0.3}}}, "high must lie a whole number of steps of 0.3 above 0, low"),
        ({"genes": {"weight": {**GENE, "step": 2.0}}}, "high must lie a whole number of steps of 2 above 0, low"),
        ({"genes": {"weight": {**GENE, "step": 0.2, "init": 0.5}}}, "init must lie a whole number of steps"),
        (
            {"genes": {"weight": {"low": 0.1, "high": 1.0, "step": 0.1, "scale": "log"}}},
            "a log scale takes no step",
        ),
        ({"genes": {"weight": GENE, "lambda": {**GENE, "per": ["expert"]}}}, "one lambda for all experts"),
        ({"modules": []}, "genes.weight.per: has module, but the space lists no modules"),
        ({"fixed": {"weight": 1.0}}, "fixed.weight: is a gene as well"),
        (
            {"fixed": {"normalise": True}},
            "fixed.normalise: task_arithmetic has no such key. Did you mean 'normalize'",
        ),
        ({"fixed": {"normalize": 1.5}}, "fixed.normalize: must be true or false"),
        ({"genes": {"lambda": GENE}}, "genes.weight: task_arithmetic needs it"),
        ({"layers": {"anchors": 1}}, "anchors must be at least 2"),
        ({"layers": {"groups": 2, "anchors": 3}}, "give either groups or anchors"),
        (
            {"method": "ties", "genes": {"weight": GENE, "density": GENE}},
            "genes.density.low: must lie in (0, 1], but is 0",
        ),
    ],
)
def test_faults_name_the_key_and_the_cure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make(**changes)
    assert message in "\n".join(faults_of(caught.value))


def test_a_space_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers.groups: is 9, but the model has 4 layers"):
        decoding.coordinates(make(layers={"groups": 9}), frame(4))
    slerp = make(method="slerp", genes={"t": GENE})
    with pytest.raises(ConfigError, match="slerp takes exactly 1 expert"):
        decoding.coordinates(slerp, frame())


def test_a_genome_of_another_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit the space"):
        decoding.decode(make(), frame(), {"weight": 0.5})


@pytest.mark.parametrize("name", shipped.names("search_spaces"))
def test_every_shipped_space_decodes(name: str) -> None:
    path = shipped.find("search_spaces", name, shipped.folder("search_spaces"), "test")
    chosen = SearchSpace.model_validate(yaml.read_yaml(path))
    laid = frame(12, "a" if chosen.method == "slerp" else "abc")
    coordinates = decoding.coordinates(chosen, laid)
    assert decoding.decode(chosen, laid, initial(coordinates)).methods == [chosen.methods[0]]
    assert path.read_text().startswith("#"), "the first line says what it is, for `evomerge ls`"


def test_the_promised_spaces_ship() -> None:
    promised = {"linear", "task_arithmetic_by_layer", "ties_by_layer", "dare_ties_by_layer", "slerp_by_layer"}
    assert promised | {"smooth_task_arithmetic"} <= set(shipped.names("search_spaces"))


def test_known_points_are_the_init_the_experts_alike_and_each_alone() -> None:
    chosen = make(genes={"weight": {"low": 0.0, "high": 0.9, "init": 0.2, "per": ["layer", "expert"]}})
    found = [
        [point[f"weight.g0.{expert}"] for expert in "ab"]
        for point in known_points.known_points(LaidOut(chosen, frame()))
    ]
    assert found == [[0.2, 0.2], [0.5, 0.5], [0.75, 0.75], [0.9, 0.9], [0.9, 0.0], [0.0, 0.9], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({}, {"weight.a": 0.0, "weight.b": 0.0}),
        (
            {"method": ["linear", "task_arithmetic"]},
            {"method": "task_arithmetic", "weight.a": 0.0, "weight.b": 0.0},
        ),
        ({"fixed": {"normalize": True}}, None),
        ({"method": "linear"}, None),
        ({"genes": {"weight": {"low": 0.1, "high": 1.0, "per": ["expert"]}}}, None),
        ({"genes": {"weight": {"low": -0.5, "high": 0.5, "step": 1.0, "per": ["expert"]}}}, None),
        ({"genes": {"lambda": GENE}, "fixed": {"weight": 1.0}}, None),
    ],
    ids=str,
)
def test_the_base_is_the_last_known_point_where_weights_of_0_are_it(
    changes: dict[str, Any], last: dict[str, Any] | None
) -> None:
    data = {"modules": [], "genes": {"weight": {**GENE, "per": ["expert"]}}, **changes}
    points = known_points.known_points(LaidOut(make(**data), frame()), [{"further": 1.0}])
    assert points.index({"further": 1.0}) == len(points) - (1 if last is None else 2)
    if last is not None:
        assert points[-1] == last
    zero = [point for point in points if {value for key, value in point.items() if "weight" in key} == {0.0}]
    assert len(zero) == (last is not None)


def wishes(value: Callable[[int, str], float]) -> list[WantedWeight]:
    """One for each of four layers' attention (10 elements) and mlp (30), and the embedding (100)."""
    places = [Place(layer, module, inside=True) for layer in range(4) for module in ("attention", "mlp")]
    sizes = {"attention": 10, "mlp": 30, "embedding": 100}
    return [
        WantedWeight(place, sizes[place.module], value(place.layer, place.module))
        for place in (*places, Place(0, "embedding", inside=False))
    ]


def wished(value: Callable[[int, str], float], **changes: Any) -> dict[str, Any]:
    chosen = make(**changes)
    start = initial(decoding.coordinates(chosen, frame()))
    return known_points.nearest_weights(LaidOut(chosen, frame()), start, wishes(value))


def test_wished_weights_are_averaged_by_elements_where_a_coordinate_reaches() -> None:
    genes = {"weight": {**GENE, "per": ["layer", "module", "expert"]}}
    found = wished(lambda layer, module: layer / 10 + (module == "mlp") / 2, genes=genes)
    for expert in "ab":
        assert found[f"weight.g0.attention.{expert}"] == 0.05
        assert found[f"weight.g1.mlp.{expert}"] == 0.75
        assert found[f"weight.g0.other.{expert}"] == 0.0  # the embedding
        assert found[f"weight.g1.other.{expert}"] == 0.5  # reaches nothing, and stays
    found = wished(lambda layer, module: float(module == "mlp"), modules=[], genes={"weight": GENE})
    assert found == {"weight": round(120 / 260, 4)}


def test_wished_weights_between_anchors_count_for_both() -> None:
    genes = {"weight": {**GENE, "per": ["layer"]}}
    found = wished(lambda layer, module: 0.25, layers={"anchors": 3}, modules=[], genes=genes)
    assert set(found.values()) == {0.25}
    rising = wished(lambda layer, module: layer / 4, layers={"anchors": 2}, modules=["mlp"], genes=genes)
    assert 0.0 < rising["weight.a0"] < rising["weight.a1"] < 0.75


def test_wished_weights_keep_to_bounds_and_steps() -> None:
    found = wished(lambda *_: 0.9, modules=[], genes={"weight": {"low": 0.0, "high": 0.6, "step": 0.2}})
    assert found == {"weight": 0.6}
    found = wished(lambda *_: 0.29, modules=[], genes={"weight": {"low": 0.0, "high": 0.6, "step": 0.2}})
    assert found == {"weight": 0.2}


def test_wished_weights_follow_tensor_patterns() -> None:
    chosen = make(modules=["*q_proj*", "attention"], genes={"weight": {**GENE, "per": ["module"]}})
    found = places([f"model.layers.0.self_attn.{part}.weight" for part in ("q_proj", "k_proj")])
    own = [WantedWeight(place, 10, number / 4) for number, place in enumerate(found.values(), 1)]
    start = initial(decoding.coordinates(chosen, frame()))
    weights = known_points.nearest_weights(LaidOut(chosen, frame()), start, own)
    assert weights == {"weight.*q_proj*": 0.25, "weight.attention": 0.5, "weight.other": 0.5}


def test_known_points_under_normalization_have_one_uniform_average() -> None:
    chosen = make(method="linear", genes={"weight": {**GENE, "per": ["expert"]}})
    found = [
        [point["weight.a"], point["weight.b"]] for point in known_points.known_points(LaidOut(chosen, frame()))
    ]
    assert found == [[0.5, 0.5], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]


def test_known_points_leave_other_genes_at_their_init() -> None:
    chosen = make(method="slerp", genes={"t": GENE})
    assert known_points.known_points(LaidOut(chosen, frame(experts="a"))) == [{"t": 0.5}]


def test_a_tensor_pattern_has_genes_of_its_own_beside_module_groups() -> None:
    chosen = make(modules=["*q_proj*", "attention"], genes={"weight": {**GENE, "per": ["module"]}})
    names = [c.name for c in decoding.coordinates(chosen, frame())]
    assert names == ["weight.*q_proj*", "weight.attention", "weight.other"]
    recipe = decode(chosen, frame(), **{"weight.*q_proj*": 0.1, "weight.attention": 0.2, "weight.other": 0.3})
    found = places([f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up")])
    assert [recipe.coefficients(place)["weight"][0] for place in found.values()] == [0.1, 0.2, 0.3]


SEVERAL = {
    "method": ["dare_ties", "task_arithmetic"],
    "genes": {"weight": {**GENE, "per": ["expert"]}, "density": {"low": 0.1, "high": 1.0}},
}


def test_a_search_may_choose_the_method_for_the_whole_model() -> None:
    chosen = make(**SEVERAL)
    points = decoding.coordinates(chosen, frame())
    assert points[0] == Coordinate("method", 0.0, 1.0, "dare_ties", False, ("dare_ties", "task_arithmetic"))
    assert decode(chosen, frame()).method == "dare_ties"
    recipe = decode(chosen, frame(), method="task_arithmetic")
    assert recipe.method == "task_arithmetic"
    assert set(recipe.parameters) == {"weight", "lambda"}  # the density is dare_ties' alone


def test_genes_that_the_chosen_method_lacks_make_no_other_candidate() -> None:
    chosen = make(**SEVERAL)
    recipes = [decode(chosen, frame(), method="task_arithmetic", density=value) for value in (0.2, 0.9)]
    assert recipes[0].sha256 == recipes[1].sha256
    assert decode(chosen, frame(), density=0.2).sha256 != decode(chosen, frame(), density=0.9).sha256


def test_a_search_may_choose_the_method_per_module_group() -> None:
    method = {"choose": ["ties", "task_arithmetic"], "per": ["module"]}
    chosen = make(**{**SEVERAL, "method": method, "modules": ["*q_proj*", "mlp"]})
    recipe = decode(chosen, frame(), **{"method.mlp": "task_arithmetic"})
    assert recipe.method == {"*q_proj*": "ties", "mlp": "task_arithmetic", "*": "ties"}


def test_options_are_fixed_for_all_methods_or_for_one() -> None:
    chosen = make(**SEVERAL, fixed={"normalize": True, "dare_ties": {"rescale": False}})
    assert decode(chosen, frame()).options == {"dare_ties": {"normalize": True, "rescale": False}}
    assert decode(chosen, frame(), method="task_arithmetic").options == {"task_arithmetic": {"normalize": True}}


def test_known_points_look_at_every_method() -> None:
    points = known_points.known_points(LaidOut(make(**SEVERAL), frame()))
    assert [point["method"] for point in points[:2]] == ["dare_ties", "task_arithmetic"]
    assert [recipe.method for recipe in decoding.representatives(make(**SEVERAL), frame())] == list(
        SEVERAL["method"]
    )


def test_a_choice_is_an_equal_part_of_the_unit_interval() -> None:
    choice = Coordinate("method", 0.0, 1.0, "x", False, ("x", "y", "z"))
    assert [choice.from_unit(unit) for unit in (-1.0, 0.0, 0.3, 0.34, 0.66, 0.67, 1.0, 2.0)] == [*"xxxyyzzz"]
    assert all(choice.from_unit(choice.to_unit(name)) == name for name in choice.choices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ["ties"]}, "method"),
        ({"method": ["ties", "ties"]}, "choose names a method twice"),
        ({"method": ["ties", "tise"]}, "method: unknown method 'tise'. Did you mean 'ties'"),
        ({"method": ["della", "ram"]}, "mean different things by epsilon"),
        (
            {"method": {"choose": ["ties", "linear"], "per": ["module"]}, "modules": []},
            "method.per: has module, but",
        ),
        ({"method": ["ties", "linear"]}, "genes.density: ties or linear needs it"),
        ({"modules": ["atention"]}, "modules: unknown module group 'atention'"),
        ({"modules": ["mlp", "*q*", "mlp"]}, "modules: names 'mlp' twice"),
    ],
)
def test_faults_of_methods_and_patterns_name_the_key_and_the_cure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make(**changes)
    assert message in "\n".join(faults_of(caught.value))


def tables_of(recipe: Recipe, layers: int, slope: Callable[[str, str, str, int], float]) -> dict[str, Any]:
    """Made-up derivatives, as `gradients` has them: parameter -> pattern or module group -> expert -> by layer."""
    found: dict[str, Any] = {}
    for name, table in recipe.parameters.items():
        experts = sorted(table["*"])
        patterns = [row for row in table if row not in (*MODULES, "*")]
        found[name] = {
            row: {expert: [slope(name, row, expert, layer) for layer in range(layers)] for expert in experts}
            for row in (*patterns, *MODULES)
        }
    return found


def some_slope(name: str, row: str, expert: str, layer: int) -> float:
    return random.Random(f"{name} {row} {expert} {layer}").uniform(-1.0, 1.0)


def inner(recipe: Recipe, tables: dict[str, Any], layers: int) -> float:
    """Σ derivative · value, over every value that a recipe has: what linear decoding must leave as it is."""
    total = 0.0
    for name, rows in tables.items():
        for row, experts in rows.items():
            values = recipe.parameters[name].get(row, recipe.parameters[name]["*"])
            for expert, slopes in experts.items():
                own = values[expert]
                total += sum(slopes[k] * (own[k] if isinstance(own, list) else own) for k in range(layers))
    return total


AXES = [(), ("layer",), ("module",), ("expert",), ("layer", "module"), ("layer", "module", "expert")]
DEPTHS: list[Any] = [{"groups": 2}, {"groups": 3}, "each", {"anchors": 2}, {"anchors": 5}]


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
    laid, draw = frame(7), random.Random(0)
    genome = {c.name: draw.uniform(c.low, c.high) for c in decoding.coordinates(chosen, laid)}
    tables = tables_of(decoding.decode(chosen, laid, genome), 7, some_slope)
    found = decoding.pull_back(chosen, laid, genome, tables)
    assert set(found) == set(genome)
    before = inner(decoding.decode(chosen, laid, genome), tables, 7)
    for name, slope in found.items():
        moved = {**genome, name: genome[name] - 0.05}
        after = inner(decoding.decode(chosen, laid, moved), tables, 7)
        assert (before - after) / 0.05 == pytest.approx(slope, abs=1e-9), name


def test_equal_values_have_derivatives_of_their_own() -> None:
    chosen, laid = make(), frame()
    genome = initial(decoding.coordinates(chosen, laid))
    recipe = decoding.decode(chosen, laid, genome)
    assert list(recipe.parameters["weight"]) == ["*"]
    found = decoding.pull_back(chosen, laid, genome, tables_of(recipe, 4, lambda _, row, *__: float(row == "mlp")))
    assert {name for name, slope in found.items() if slope} == {c for c in genome if ".mlp." in c}
    assert found["weight.g0.mlp.a"] == 2.0  # two layers


def test_choices_have_no_derivative_and_genes_without_a_parameter_have_0() -> None:
    chosen, laid = make(**SEVERAL), frame()
    genome = {**initial(decoding.coordinates(chosen, laid)), "method": "task_arithmetic"}
    tables = tables_of(decoding.decode(chosen, laid, genome), 4, lambda *_: 1.0)
    found = decoding.pull_back(chosen, laid, genome, tables)
    assert found == {"weight.a": 24.0, "weight.b": 24.0, "density": 0.0}


def test_derivatives_for_a_genome_of_another_space_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit the space"):
        decoding.pull_back(make(), frame(), {"weight": 0.5}, {})


def stepped(low: float, high: float, step: float) -> Coordinate:
    return Coordinate("x", low, high, low, False, step=step)


def test_a_stepped_number_takes_equal_parts_of_the_unit_interval_for_its_values() -> None:
    density = stepped(0.2, 1.0, 0.2)
    assert [density.at(index) for index in range(density.steps + 1)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    units = (-1.0, 0.0, 0.19, 0.21, 0.5, 0.79, 0.81, 1.0, 2.0)
    assert [density.from_unit(unit) for unit in units] == [0.2, 0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]
    assert [density.to_unit(value) for value in (0.2, 0.6, 1.0)] == pytest.approx([0.1, 0.5, 0.9])
    assert [density.nearest(value) for value in (-3.0, 0.29, 0.31, 0.95, 7.0)] == [0.2, 0.2, 0.4, 1.0, 1.0]


@given(st.floats(-10, 10), st.sampled_from([0.1, 0.25, 0.3, 1.0, 1 / 3, 1e-3]), st.integers(1, 40))
def test_a_stepped_number_returns_from_the_unit_interval_as_the_same_float(
    low: float, step: float, steps: int
) -> None:
    number = stepped(low, low + steps * step, step)
    values = [number.at(index) for index in range(steps + 1)]
    assert number.steps == steps
    assert [number.from_unit(number.to_unit(value)) for value in values] == values
    assert [number.nearest(value) for value in values] == values
    assert (values[0], values[-1]) == (number.low, number.high)
    assert values == sorted(set(values))


def test_a_step_gives_whole_numbers_and_starts_at_the_value_nearest_the_middle() -> None:
    genes: dict[str, Any] = {"weight": {"low": 0.0, "high": 1.0, "step": 0.4 / 2}}
    genes["lambda"] = {"low": 1, "high": 4, "step": 1}
    points = {c.name: c for c in decoding.coordinates(make(genes=genes), frame())}
    assert [points["lambda"].from_unit(unit) for unit in (0.1, 0.4, 0.6, 0.9)] == [1.0, 2.0, 3.0, 4.0]
    assert points["weight"].init in (0.4, 0.6)
    genes["weight"]["init"] = 0.6000000000000001
    assert {c.name: c.init for c in decoding.coordinates(make(genes=genes), frame())}["weight"] == 0.6


def test_equal_stepped_genes_are_equal_recipes() -> None:
    chosen = make(genes={"weight": {**GENE, "step": 0.1}})
    (point,) = decoding.coordinates(chosen, frame())
    recipes = [decoding.decode(chosen, frame(), {"weight": point.from_unit(unit)}) for unit in (0.28, 0.36)]
    assert recipes[0].sha256 == recipes[1].sha256
    assert weight(recipes[0], 0, "mlp") == (0.3, 0.3)


def test_known_points_lie_on_the_steps() -> None:
    gene = {"low": 0.0, "high": 0.8, "step": 0.4, "per": ["expert"]}
    found = [
        (point["weight.a"], point["weight.b"])
        for point in known_points.known_points(LaidOut(make(genes={"weight": gene}), frame()))
    ]
    assert found == [(0.4, 0.4), (0.8, 0.8), (0.8, 0.0), (0.0, 0.8), (0.0, 0.0)]


# --- switches and sources ----------------------------------------------------------------------------------

SWITCH = {"switch": {"per": ["expert"]}}
SOURCE = {"source": {"per": ["layer"], "base": True, "mix": True}}
WEIGHT = {"weight": {"low": 0.25, "high": 1.25, "init": 0.75, "per": ["expert"]}}


def gated(genes: dict[str, Any], **changes: Any) -> SearchSpace:
    return make(genes={**genes, **WEIGHT}, **changes)


def test_switches_and_sources_are_choices_with_a_name_for_each_combination() -> None:
    points = decoding.coordinates(gated({"switch": {"per": ["layer", "expert"], "init": "off"}}), frame())
    assert [c.name for c in points if c.choices] == [
        f"switch.g{group}.{expert}" for group in (0, 1) for expert in "ab"
    ]
    assert points[0] == Coordinate("switch.g0.a", 0.0, 1.0, "off", False, ("on", "off"), depth=0, expert="a")
    points = decoding.coordinates(gated({"source": {"per": ["layer", "module"]}}), frame())
    assert [c.name for c in points[:3]] == ["source.g0.attention", "source.g0.mlp", "source.g0.other"]
    assert (points[0].choices, points[0].init) == (("a", "b"), "a")
    points = decoding.coordinates(gated(SOURCE), frame())
    assert (points[0].choices, points[0].init) == (("a", "b", "base", "mix"), "mix")


@pytest.mark.parametrize(("written", "init"), [("on", "on"), ("off", "off"), ('"off"', "off")])
def test_a_switch_may_be_written_as_yaml_writes_it(tmp_path: Any, written: str, init: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"method: ties\ngenes: {{switch: {{init: {written}}}}}\nfixed: {{density: 0.5}}\n")
    chosen = SearchSpace.model_validate(yaml.read_yaml(path))
    assert decoding.coordinates(chosen, frame())[0].init == init
    assert SearchSpace.model_validate(chosen.model_dump(mode="json", exclude_none=True)) == chosen


def test_an_expert_that_is_off_has_weight_0_and_the_others_keep_theirs() -> None:
    chosen = gated({"switch": {"per": ["layer", "module", "expert"]}})
    recipe = decode(chosen, frame(), **{"switch.g1.mlp.a": "off", "weight.b": 0.5})
    for layer in range(4):
        for module in MODULES:
            off = layer >= 2 and module == "mlp"
            assert weight(recipe, layer, module) == (0.0 if off else 0.75, 0.5)


def test_a_switch_without_experts_switches_them_all() -> None:
    recipe = decode(gated({"switch": {"per": ["layer"]}}), frame(), **{"switch.g0": "off"})
    assert [weight(recipe, layer, "mlp") for layer in range(4)] == [(0.0, 0.0)] * 2 + [(0.75, 0.75)] * 2


def test_with_everything_on_or_mixed_the_recipe_is_that_without_choices() -> None:
    plain = decode(make(genes=WEIGHT), frame()).sha256
    for genes in (SWITCH, SOURCE, {"switch": {"per": ["module"]}}):
        assert decode(gated(genes), frame()).sha256 == plain


def test_a_source_keeps_the_weight_of_the_chosen_expert_alone() -> None:
    chosen = gated(SOURCE, layers="each")
    recipe = decode(chosen, frame(), **{"source.l0": "a", "source.l1": "b", "source.l2": "base", "weight.b": 0.5})
    found = [weight(recipe, layer, "mlp") for layer in range(4)]
    assert found == [(0.75, 0.0), (0.0, 0.5), (0.0, 0.0), (0.75, 0.5)]


def test_sources_by_module_follow_patterns_as_weights_do() -> None:
    genes = {"source": {"per": ["module"]}, "weight": {**GENE, "per": ["module", "expert"]}}
    chosen = make(genes=genes, modules=["*q_proj*", "attention"])
    recipe = decode(
        chosen, frame(), **{"source.attention": "b", "weight.attention.b": 0.1, "weight.*q_proj*.a": 0.2}
    )
    found = places([f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up")])
    values = [recipe.coefficients(place)["weight"] for place in found.values()]
    assert values == [(0.2, 0.0), (0.0, 0.1), (0.5, 0.0)]


def test_switches_may_follow_patterns_where_weights_do_not() -> None:
    chosen = gated({"switch": {"per": ["module", "expert"]}}, modules=["*q_proj*", "attention"])
    recipe = decode(chosen, frame(), **{"switch.*q_proj*.a": "off", "switch.other.b": "off"})
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
    recipe = decode(make(genes=SWITCH, fixed=fixed), frame(), **{"switch.a": "off"})
    place = Place(2, "mlp", inside=True, name="model.layers.2.mlp.up.weight")
    assert recipe.coefficients(place)["weight"] == wanted


def test_patterns_of_fixed_weights_that_cross_those_of_the_switches_are_refused() -> None:
    genes = {"switch": {"per": ["module", "expert"]}}
    chosen = make(genes=genes, fixed={"weight": {"*up*": 0.25, "*": 1.5}})
    with pytest.raises(ConfigError, match=r"fixed.weight: has not the patterns that modules has"):
        decode(chosen, frame())
    same = make(genes=genes, fixed={"weight": {"*up*": 0.25, "*": 1.5}}, modules=["*up*"])
    recipe = decode(same, frame(), **{"switch.*up*.a": "off"})
    found = places([f"model.layers.0.mlp.{part}.weight" for part in ("up", "down")])
    assert [recipe.coefficients(place)["weight"] for place in found.values()] == [(0.0, 0.25), (1.5, 1.5)]


def test_weights_of_what_takes_no_part_make_no_other_candidate() -> None:
    chosen = gated(SWITCH)
    recipes = [decode(chosen, frame(), **{"switch.a": "off", "weight.a": value}) for value in (0.3, 0.9)]
    assert recipes[0].sha256 == recipes[1].sha256


def test_switches_mean_nothing_to_a_method_without_weights() -> None:
    chosen = gated(SWITCH, method=["ties", "ram"], fixed={"density": 0.5})
    recipe = decode(chosen, frame(), method="ram", **{"switch.a": "off"})
    assert set(recipe.parameters) == {"epsilon", "lambda"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genes": {"switch": {"per": ["layer"]}}, "layers": {"anchors": 2}}, "genes.switch.per: has layer, but"),
        ({"genes": {"source": {"per": ["layer"]}}, "layers": {"anchors": 2}}, "genes.source.per: has layer, but"),
        ({"genes": {"source": {"per": ["module"]}}, "modules": []}, "genes.source.per: has module, but"),
        ({"genes": {"source": {"per": ["expert"]}}}, "genes.source.per.0"),
        ({"genes": {"source": {"per": ["layer", "layer"]}}}, "genes.source.per: names an axis twice"),
        ({"genes": {"switch": {"init": "maybe"}}}, "genes.switch.init"),
        ({"genes": {"switch": {"low": 0.0}}}, "genes.switch.low: is no key here"),
        ({"genes": {**SWITCH, **SOURCE}}, "genes.source: a space has either a source or switches"),
        ({"method": "slerp", "genes": {"t": GENE, **SWITCH}}, "genes.switch: slerp has no weight of each expert"),
        ({"method": "linear", "genes": SWITCH}, "genes.switch: may set all weights to 0, of which linear"),
        (
            {"method": ["ties", "karcher"], "genes": SOURCE},
            "genes.source.base: may set all weights to 0, of which kar",
        ),
        (
            {"method": "linear", "genes": {"source": {"mix": True}, "weight": GENE}},
            "genes.source: may choose an expert of weight 0, which alone is no model to linear",
        ),
        (
            {"method": "linear", "genes": {"source": {}}, "fixed": {"weight": {"a": [1.0, 0], "b": 1.0}}},
            "genes.source: may choose an expert of weight 0",
        ),
    ],
)
def test_faults_of_switches_and_sources_name_the_key_and_the_cure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make(**changes)
    assert message in "\n".join(faults_of(caught.value))


def test_a_source_that_leaves_no_choice_or_has_two_meanings_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"genes.source: there is but one expert to choose"):
        decoding.coordinates(make(genes={"source": {}}), frame(experts="a"))
    sources = {name: Source(model=name) for name in ("base", "other")}
    laid = CommonRecipe(Source(model="base"), sources, 4, "float32", 0)
    with pytest.raises(ConfigError, match=r"experts.base: is what a source may be besides an expert"):
        decoding.coordinates(make(genes=SOURCE), laid)


def test_a_linear_merge_may_have_sources_of_positive_weight() -> None:
    chosen = make(method="linear", genes={"source": {"per": ["layer"], "mix": True}, **WEIGHT})
    assert weight(decode(chosen, frame(), **{"source.g0": "b"}), 0, "mlp") == (0.0, 0.75)


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_only_methods_that_make_the_base_of_weights_of_0_may_have_all_of_them_off(name: str) -> None:
    method = plugins.load("methods", name)
    if "weight" not in {parameter.name for parameter in method.PARAMETERS} or faults.needs_weights(name):
        return
    base, *experts = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    for on in range(2 ** len(method.OPTIONS)):
        options = {option: bool(on >> k & 1) for k, option in enumerate(method.OPTIONS)}
        merged = merge(name, base, dict(zip("ab", experts, strict=True)), options, weight=0.0, density=0.5)
        assert torch.equal(merged, base)


def test_methods_that_need_weights_are_those_without_a_lambda() -> None:
    needy = {name for name in plugins.names("methods") if faults.needs_weights(name)}
    assert needy == {"karcher", "linear", "multislerp", "nuslerp"}


def alone(points: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(point[name] for name in names) for point in points]


def test_known_points_with_switches_have_everything_on_and_each_expert_alone() -> None:
    points = known_points.known_points(LaidOut(gated({"switch": {"per": ["expert"], "init": "off"}}), frame()))
    assert alone(points, "switch.a", "switch.b", "weight.a", "weight.b") == [
        ("off", "off", 0.75, 0.75),
        ("on", "on", 0.5, 0.5),
        ("on", "on", 0.75, 0.75),
        ("on", "on", 1.0, 1.0),
        ("on", "off", 1.0, 0.75),
        ("off", "on", 0.75, 1.0),
    ], "the last, the base, is the init"


def test_known_points_with_switches_alone() -> None:
    points = known_points.known_points(LaidOut(make(genes=SWITCH), frame()))
    assert alone(points, "switch.a", "switch.b") == [("on", "on"), ("on", "off"), ("off", "on"), ("off", "off")]


def test_known_points_with_switches_by_layer_leave_experts_alone_by_their_weights() -> None:
    genes = {"switch": {"per": ["layer"]}, "weight": {**GENE, "per": ["expert"]}}
    points = known_points.known_points(LaidOut(make(genes=genes), frame()))
    found = alone(points, "switch.g0", "weight.a", "weight.b")
    assert found[-3:] == [("on", 1.0, 0.0), ("on", 0.0, 1.0), ("off", 0.5, 0.5)]


def test_known_points_with_sources_mix_all_experts_if_they_may_and_choose_each_alone() -> None:
    points = known_points.known_points(LaidOut(gated(SOURCE), frame()))
    assert alone(points, "source.g0", "source.g1", "weight.a", "weight.b") == [
        ("mix", "mix", 0.75, 0.75),
        ("mix", "mix", 0.5, 0.5),
        ("mix", "mix", 1.0, 1.0),
        ("a", "a", 1.0, 0.75),
        ("b", "b", 0.75, 1.0),
        ("base", "base", 0.75, 0.75),
    ]
    points = known_points.known_points(
        LaidOut(make(genes={"source": {}, "weight": {**GENE, "per": ["expert"]}}), frame())
    )
    assert alone(points, "source", "weight.a", "weight.b") == [
        ("a", 0.5, 0.5),
        ("a", 1.0, 0.5),
        ("b", 0.5, 1.0),
        ("a", 0.0, 0.0),
    ]
    assert alone(known_points.known_points(LaidOut(make(genes={"source": {}}), frame())), "source") == [
        ("a",),
        ("b",),
    ]


@pytest.mark.parametrize("genes", [{"switch": {"per": ["layer", "module", "expert"]}}, SOURCE], ids=str)
@pytest.mark.parametrize("per", AXES, ids=str)
@pytest.mark.parametrize("modules", [["attention", "mlp"], ["*q_proj*", "attention"], list(MODULES)], ids=str)
def test_derivatives_go_through_the_weights_of_those_that_take_part(
    genes: dict[str, Any], per: tuple[str, ...], modules: list[str]
) -> None:
    chosen = make(modules=modules, genes={**genes, "weight": {**GENE, "per": list(per)}})
    laid, draw = frame(5), random.Random(0)
    points = decoding.coordinates(chosen, laid)
    genome = {c.name: draw.choice(c.choices) if c.choices else draw.uniform(0.1, 1.0) for c in points}
    recipe = decoding.decode(chosen, laid, genome)
    tables = tables_of(recipe, 5, some_slope)
    found = decoding.pull_back(chosen, laid, genome, tables)
    assert set(found) == {c.name for c in points if not c.choices}
    before = inner(recipe, tables, 5)
    for name, slope in found.items():
        after = inner(decoding.decode(chosen, laid, {**genome, name: float(genome[name]) - 0.05}), tables, 5)
        assert (before - after) / 0.05 == pytest.approx(slope, abs=1e-9), name


def test_the_derivative_in_the_weight_of_an_expert_that_is_off_is_0() -> None:
    chosen, laid = gated(SWITCH), frame()
    genome = {**initial(decoding.coordinates(chosen, laid)), "switch.a": "off"}
    tables = tables_of(decoding.decode(chosen, laid, genome), 4, lambda *_: 1.0)
    assert decoding.pull_back(chosen, laid, genome, tables) == {"weight.a": 0.0, "weight.b": 24.0}
