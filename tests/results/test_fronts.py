"""Fronts, hypervolumes and picks, against plain definitions of them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.results import choosing, fronts
from evomerge.results.hypervolume import hypervolume
from evomerge.studies.trials import Trial
from tests.helpers.trials import make_trial

Point = tuple[float, ...]


def trial(number: int, point: Point | None, generation: int = 0, **rest: Any) -> Trial:
    climbed = {} if point is None else {f"t{at}": value for at, value in enumerate(point)}
    value = None if point is None else sum(point) / len(point)
    return make_trial(number, value, generation=generation, tasks=climbed, climbed=climbed, **rest)


def trials(*points: Point | None) -> list[Trial]:
    return [trial(number, point) for number, point in enumerate(points)]


def numbers(found: Sequence[Trial]) -> list[int]:
    return [one.number for one in found]


@st.composite
def clouds(draw: st.DrawFn, objectives: tuple[int, int] = (1, 6), most: int = 8) -> list[Point]:
    """Points on a coarse lattice, so that many are equal in some objectives, or off it."""
    width = draw(st.integers(*objectives))
    number = st.one_of(st.integers(-1, 4).map(float), st.floats(0.0, 4.0, allow_subnormal=False))
    return draw(st.lists(st.tuples(*[number] * width), min_size=1, max_size=most))


# --- the front ---------------------------------------------------------------------------------------------


@given(clouds(most=12))
def test_the_front_is_what_nothing_dominates(points: list[Point]) -> None:
    def dominates(one: Point, other: Point) -> bool:
        return one != other and all(a >= b for a, b in zip(one, other, strict=True))

    expected = [
        number
        for number, point in enumerate(points)
        if not any(dominates(other, point) for other in points) and point not in points[:number]
    ]
    assert numbers(fronts.front(trials(*points))) == expected


def test_failed_trials_are_on_no_front() -> None:
    assert numbers(fronts.front(trials(None, (0.1, 0.2), None))) == [1]
    assert fronts.front(trials(None)) == []


def test_trials_on_some_documents_count_only_where_there_are_no_others() -> None:
    partial = [trial(0, (0.9, 0.9), all_documents=False), trial(1, (0.1, 0.2), all_documents=False)]
    assert numbers(fronts.front([*partial, trial(2, (0.5, 0.5))])) == [2]
    assert numbers(fronts.front(partial)) == [0]
    assert numbers(fronts.front([*partial, trial(2, (0.5, 0.5), role="final")])) == [0]


# --- hypervolume -------------------------------------------------------------------------------------------


def by_inclusion_and_exclusion(points: Sequence[Point], reference: Point) -> float:
    total = 0.0
    for count in range(1, len(points) + 1):
        for some in itertools.combinations(points, count):
            sides = [
                max(min(column) - low, 0.0) for column, low in zip(zip(*some, strict=True), reference, strict=True)
            ]
            total -= (-1) ** count * math.prod(sides)
    return total


@given(clouds())
@settings(max_examples=200)
def test_the_hypervolume_is_that_of_the_union_of_boxes(points: list[Point]) -> None:
    reference = (0.0,) * len(points[0])
    found = hypervolume(points, reference)
    assert found == pytest.approx(by_inclusion_and_exclusion(points, reference), rel=1e-9, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [2, 3, 4, 5, 6])
def test_the_hypervolume_of_a_front_of_a_hundred_is_quick_and_agrees_with_sampling(objectives: int) -> None:
    random = np.random.default_rng(objectives)
    points = np.abs(random.standard_normal((100, objectives)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    start = time.perf_counter()
    found = hypervolume(points, [0.0] * objectives)
    assert time.perf_counter() - start < 20
    sample = random.random((20_000, objectives))
    inside = np.mean([(points >= one).all(axis=1).any() for one in sample])
    assert found == pytest.approx(inside, abs=4 * math.sqrt(inside / len(sample)))


def test_no_points_have_no_volume() -> None:
    assert hypervolume([], ()) == 0.0
    assert hypervolume([(0.5, 0.0)], (0.0, 0.0)) == 0.0
    assert fronts.hypervolumes([]) == []
    assert fronts.reference(trials(None)) == ()


@given(clouds(objectives=(2, 5), most=20), st.integers(1, 5))
def test_the_running_hypervolume_is_that_of_each_generations_front(points: list[Point], size: int) -> None:
    searched = [trial(number, point, number // size) for number, point in enumerate(points)]
    lowest = fronts.reference(searched)
    assert lowest == tuple(map(min, zip(*points[:size], strict=True)))
    expected = [hypervolume(points[: end + size], lowest) for end in range(0, len(points), size)]
    assert fronts.hypervolumes(searched) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_two_thousand_trials_take_little_time() -> None:
    random = np.random.default_rng(0)
    searched = [trial(n, tuple((1 - random.random(3) * (1 - n / 2500)).tolist()), n // 20) for n in range(2000)]
    start = time.perf_counter()
    found = fronts.hypervolumes(searched)
    assert time.perf_counter() - start < 10
    assert len(found) == 100
    assert found == sorted(found)


# --- picking one -------------------------------------------------------------------------------------------


def test_the_knee_lies_farthest_from_the_line_between_the_extremes() -> None:
    assert fronts.knee(trials((0.0, 10.0), (0.4, 8.0), (0.7, 5.0), (1.0, 0.0))).number == 1
    assert fronts.knee(trials((0.5, 0.5))).number == 0


def test_equals_have_no_knee_between_them_and_the_best_value_wins() -> None:
    assert fronts.knee(trials((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))).number == 0
    assert fronts.knee(trials((0.0, 1.0), (3.0, 0.5))).number == 1


@given(clouds(objectives=(2, 4)), st.integers(0, 2**16))
def test_the_knee_does_not_depend_on_the_units(points: list[Point], seed: int) -> None:
    front = fronts.front(trials(*(tuple(round(8 * value) / 8 for value in point) for point in points)))
    random = np.random.default_rng(seed)
    factors, shifts = 2.0 ** random.integers(-3, 4, len(points[0])), random.integers(-3, 4, len(points[0]))

    def scaled(one: Trial) -> Trial:
        climbed = dict(zip(one.climbed, (factors * list(one.climbed.values()) + shifts).tolist(), strict=True))
        return replace(one, climbed=climbed)

    assert fronts.knee([scaled(one) for one in front]).number == fronts.knee(front).number


def test_weights_pick_the_highest_weighted_mean() -> None:
    found = trials((0.9, 0.1), (0.6, 0.6), (0.1, 0.9), None)
    assert choosing.by_weights(found, {"t0": 1.0}).number == 0
    assert choosing.by_weights(found, {"t0": 1.0, "t1": 1.0}).number == 1
    assert choosing.by_weights(found, {"t0": 1e308, "t1": 1.5e308}).number == 1
    assert choosing.by_weights(found, {"t1": 5.0, "t0": 1.0}).number == 2


def test_all_faults_of_weights_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        choosing.by_weights(trials((0.1, 0.2)), {"t2": 1.0, "t0": -1.0, "t1": math.nan})
    text = str(caught.value)
    assert "--pick: unknown task 't2'. Known: t0, t1." in text
    assert "the weight of t0 must be finite and at least 0, but is -1" in text
    assert "the weight of t1" in text


@pytest.mark.parametrize(
    ("text", "number"), [("best", 1), ("knee", 1), ("0", 0), ("3", 3), ("t1=2,t0=0", 2), (" t0 = 1 , t1 = 1e-3", 0)]
)
def test_a_pick_is_a_word_a_number_or_weights(text: str, number: int) -> None:
    assert choosing.pick(trials((0.9, 0.1), (0.6, 0.6), (0.1, 0.9), None), text).number == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "bets",
            "is 'bets'; give one of these, a trial's number, or weights like maths=2,code=1. Did you mean 'best'",
        ),
        ("2", "is 2, but the study has trials 0 to 1"),
        ("-1", "is '-1'; give"),
        ("t0=much", "'t0=much' is no weight; write TASK=NUMBER"),
        ("t0=1,t1", "'t1' is no weight"),
        ("=1", "'=1' is no weight"),
        ("t0=1,t0=2", "names t0 twice"),
        ("t0=0", "give at least one task a weight above 0"),
    ],
)
def test_a_pick_that_means_nothing_is_refused_in_one_line(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choosing.pick(trials((0.1, 0.2), (0.2, 0.1)), text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["best", "knee", "t0=1"])
def test_nothing_can_be_picked_where_all_failed(text: str) -> None:
    with pytest.raises(ConfigError, match="the study has no finished trial yet"):
        choosing.pick(trials(None), text)
