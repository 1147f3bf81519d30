from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evomerge import catalog, space
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, Source, faults_of
from evomerge.space import Coordinate, Frame, SearchSpace
from evomerge.tensors import Place, places

GENE = {"low": 0.0, "high": 1.0}


def make(**changes: Any) -> SearchSpace:
    data: dict[str, Any] = {
        "method": "task_arithmetic",
        "layers": {"groups": 2},
        "modules": ["attention", "mlp"],
        "genes": {"weight": {**GENE, "per": ["layer", "module", "expert"]}},
    }
    return SearchSpace.model_validate({**data, **changes})


def frame(layers: int = 4, experts: str = "ab") -> Frame:
    sources = {name: Source(model=name, sha256=name * 64) for name in experts}
    return Frame(Source(model="base", sha256="0" * 64), sources, layers, "float32", 0)


def decode(chosen: SearchSpace, laid: Frame, **values: float | str) -> Recipe:
    genome = space.initial(space.coordinates(chosen, laid))
    assert set(values) <= set(genome)
    return space.decode(chosen, laid, {**genome, **values})


def weight(recipe: Recipe, layer: int, module: str) -> tuple[float, ...]:
    return recipe.coefficients(Place(layer, module, inside=True))["weight"]


def test_coordinates_are_the_product_of_the_axes() -> None:
    names = [c.name for c in space.coordinates(make(), frame())]
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
    spread = space._spread(list(range(groups)), "g", layers)
    assert spread == sorted(spread)
    sizes = [spread.count(group) for group in range(groups)]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.integers(6, 40))
def test_anchors_are_interpolated_and_met_at_both_ends(points: list[float], layers: int) -> None:
    values = space._spread(points, "a", layers)
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
    assert 0.01 <= value <= 10.0
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
        space.coordinates(make(layers={"groups": 9}), frame(4))
    slerp = make(method="slerp", genes={"t": GENE})
    with pytest.raises(ConfigError, match="slerp takes exactly 1 expert"):
        space.coordinates(slerp, frame())


def test_a_genome_of_another_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit the space"):
        space.decode(make(), frame(), {"weight": 0.5})


@pytest.mark.parametrize("name", catalog.names("search_spaces"))
def test_every_shipped_space_decodes(name: str) -> None:
    path = catalog.find("search_spaces", name, catalog.folder("search_spaces"), "test")
    chosen = SearchSpace.model_validate(catalog.read_yaml(path))
    laid = frame(12, "a" if chosen.method == "slerp" else "abc")
    coordinates = space.coordinates(chosen, laid)
    assert space.decode(chosen, laid, space.initial(coordinates)).methods == [chosen.methods[0]]
    assert path.read_text().startswith("#"), "the first line says what it is, for `evomerge ls`"


def test_the_promised_spaces_ship() -> None:
    promised = {"linear", "task_arithmetic_by_layer", "ties_by_layer", "dare_ties_by_layer", "slerp_by_layer"}
    assert promised | {"smooth_task_arithmetic"} <= set(catalog.names("search_spaces"))


def test_known_points_are_the_init_the_experts_alike_and_each_alone() -> None:
    chosen = make(genes={"weight": {"low": 0.0, "high": 0.9, "init": 0.2, "per": ["layer", "expert"]}})
    found = [[point[f"weight.g0.{expert}"] for expert in "ab"] for point in space.known_points(chosen, frame())]
    assert found == [[0.2, 0.2], [0.5, 0.5], [0.75, 0.75], [0.9, 0.9], [0.9, 0.0], [0.0, 0.9]]


def test_known_points_under_normalization_have_one_uniform_average() -> None:
    chosen = make(method="linear", genes={"weight": {**GENE, "per": ["expert"]}})
    found = [[point["weight.a"], point["weight.b"]] for point in space.known_points(chosen, frame())]
    assert found == [[0.5, 0.5], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]


def test_known_points_leave_other_genes_at_their_init() -> None:
    chosen = make(method="slerp", genes={"t": GENE})
    assert space.known_points(chosen, frame(experts="a")) == [{"t": 0.5}]


def test_a_tensor_pattern_has_genes_of_its_own_beside_module_groups() -> None:
    chosen = make(modules=["*q_proj*", "attention"], genes={"weight": {**GENE, "per": ["module"]}})
    names = [c.name for c in space.coordinates(chosen, frame())]
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
    points = space.coordinates(chosen, frame())
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
    points = space.known_points(make(**SEVERAL), frame())
    assert [point["method"] for point in points[:2]] == ["dare_ties", "task_arithmetic"]
    assert [recipe.method for recipe in space.representatives(make(**SEVERAL), frame())] == list(SEVERAL["method"])


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
