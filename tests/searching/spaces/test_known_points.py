"""Points that are looked at first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evomerge.models.tensor_names import Place, places
from evomerge.searching.spaces import decoding, known_points
from evomerge.searching.spaces.decoding import LaidOut
from evomerge.searching.spaces.genes import initial
from evomerge.searching.spaces.known_points import WantedWeight
from tests.helpers.made_spaces import GENE, SEVERAL, SOURCE, SWITCH, gated, make, models


def test_known_points_are_the_init_the_experts_alike_and_each_alone() -> None:
    chosen = make(genes={"weight": {"low": 0.0, "high": 0.9, "init": 0.2, "per": ["layer", "expert"]}})
    found = [
        [point[f"weight.g0.{expert}"] for expert in "ab"]
        for point in known_points.known_points(LaidOut(chosen, models()))
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
    points = known_points.known_points(LaidOut(make(**data), models()), [{"further": 1.0}])
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
    start = initial(decoding.coordinates(chosen, models()))
    return known_points.nearest_weights(LaidOut(chosen, models()), start, wishes(value))


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
    start = initial(decoding.coordinates(chosen, models()))
    weights = known_points.nearest_weights(LaidOut(chosen, models()), start, own)
    assert weights == {"weight.*q_proj*": 0.25, "weight.attention": 0.5, "weight.other": 0.5}


def test_known_points_under_normalization_have_one_uniform_average() -> None:
    chosen = make(method="linear", genes={"weight": {**GENE, "per": ["expert"]}})
    found = [
        [point["weight.a"], point["weight.b"]] for point in known_points.known_points(LaidOut(chosen, models()))
    ]
    assert found == [[0.5, 0.5], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]


def test_known_points_leave_other_genes_at_their_init() -> None:
    chosen = make(method="slerp", genes={"t": GENE})
    assert known_points.known_points(LaidOut(chosen, models(experts="a"))) == [{"t": 0.5}]


def test_known_points_look_at_every_method() -> None:
    points = known_points.known_points(LaidOut(make(**SEVERAL), models()))
    assert [point["method"] for point in points[:2]] == ["dare_ties", "task_arithmetic"]
    assert [recipe.method for recipe in decoding.representatives(make(**SEVERAL), models())] == list(
        SEVERAL["method"]
    )


def test_known_points_lie_on_the_steps() -> None:
    gene = {"low": 0.0, "high": 0.8, "step": 0.4, "per": ["expert"]}
    found = [
        (point["weight.a"], point["weight.b"])
        for point in known_points.known_points(LaidOut(make(genes={"weight": gene}), models()))
    ]
    assert found == [(0.4, 0.4), (0.8, 0.8), (0.8, 0.0), (0.0, 0.8), (0.0, 0.0)]


def alone(points: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(point[name] for name in names) for point in points]


def test_known_points_with_switches_have_everything_on_and_each_expert_alone() -> None:
    points = known_points.known_points(LaidOut(gated({"switch": {"per": ["expert"], "init": "off"}}), models()))
    assert alone(points, "switch.a", "switch.b", "weight.a", "weight.b") == [
        ("off", "off", 0.75, 0.75),
        ("on", "on", 0.5, 0.5),
        ("on", "on", 0.75, 0.75),
        ("on", "on", 1.0, 1.0),
        ("on", "off", 1.0, 0.75),
        ("off", "on", 0.75, 1.0),
    ], "the last, the base, is the init"


def test_known_points_with_switches_alone() -> None:
    points = known_points.known_points(LaidOut(make(genes=SWITCH), models()))
    assert alone(points, "switch.a", "switch.b") == [("on", "on"), ("on", "off"), ("off", "on"), ("off", "off")]


def test_known_points_with_switches_by_layer_leave_experts_alone_by_their_weights() -> None:
    genes = {"switch": {"per": ["layer"]}, "weight": {**GENE, "per": ["expert"]}}
    points = known_points.known_points(LaidOut(make(genes=genes), models()))
    found = alone(points, "switch.g0", "weight.a", "weight.b")
    assert found[-3:] == [("on", 1.0, 0.0), ("on", 0.0, 1.0), ("off", 0.5, 0.5)]


def test_known_points_with_sources_mix_all_experts_if_they_may_and_choose_each_alone() -> None:
    points = known_points.known_points(LaidOut(gated(SOURCE), models()))
    assert alone(points, "source.g0", "source.g1", "weight.a", "weight.b") == [
        ("mix", "mix", 0.75, 0.75),
        ("mix", "mix", 0.5, 0.5),
        ("mix", "mix", 1.0, 1.0),
        ("a", "a", 1.0, 0.75),
        ("b", "b", 0.75, 1.0),
        ("base", "base", 0.75, 0.75),
    ]
    points = known_points.known_points(
        LaidOut(make(genes={"source": {}, "weight": {**GENE, "per": ["expert"]}}), models())
    )
    assert alone(points, "source", "weight.a", "weight.b") == [
        ("a", 0.5, 0.5),
        ("a", 1.0, 0.5),
        ("b", 0.5, 1.0),
        ("a", 0.0, 0.0),
    ]
    assert alone(known_points.known_points(LaidOut(make(genes={"source": {}}), models())), "source") == [
        ("a",),
        ("b",),
    ]
