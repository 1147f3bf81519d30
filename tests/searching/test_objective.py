"""Values and their differences, held against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.objectives import Entry, objective_of

ENTRIES = [Entry("maths", 100, 0.5), Entry("code", 37, 0.3), Entry("tiny", 3, 0.2)]


def test_the_value_is_the_weighted_mean_of_the_entries_that_have_documents() -> None:
    objective = objective_of(ENTRIES)
    scores = {"maths": np.array([1.0, 0.0]), "code": np.array([0.5]), "tiny": np.array([0.0, 0.0, 1.0])}
    assert objective.value(scores) == pytest.approx(0.5 * 0.5 + 0.3 * 0.5 + 0.2 / 3)
    assert objective.value({"maths": np.array([1.0]), "code": np.array([0.0])}) == pytest.approx(0.5 / 0.8)
    assert objective.value({**scores, "code": np.zeros(0)}) == pytest.approx((0.5 * 0.5 + 0.2 / 3) / 0.7)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5))
def test_shares_add_up_to_1_whatever_the_weights(weights: list[float]) -> None:
    objective = objective_of([Entry(f"e{at}", 1, weight) for at, weight in enumerate(weights)])
    assert sum(objective.shares.values()) == pytest.approx(1.0)
    some = objective.shares_among(["e0"])
    assert some == {"e0": 1.0}
    assert objective.of_entries({"e0": 0.25}) == pytest.approx(0.25)


def test_means_and_rows_stand_in_the_order_of_the_entries() -> None:
    objective = objective_of(ENTRIES)
    scores = {"tiny": np.array([0.0, 1.0]), "maths": np.array([1.0])}
    assert objective.means(scores) == (1.0, 0.5)
    assert objective.in_one_row(scores).tolist() == [1.0, 0.0, 1.0]
    assert objective.documents == 140


def test_the_error_of_a_difference_is_that_of_its_sampling() -> None:
    objective = objective_of([Entry("a", 400, 3.0), Entry("b", 100, 1.0)])
    random = np.random.default_rng(0)
    differences = [
        objective.difference(
            {"a": random.normal(1.0, 2.0, 400), "b": random.normal(0.0, 1.0, 100)},
            {"a": np.zeros(400), "b": np.zeros(100)},
        )
        for _ in range(500)
    ]
    wanted = math.hypot(0.75 * 2.0 / 20, 0.25 * 1.0 / 10)
    assert np.std([one.mean for one in differences]) == pytest.approx(wanted, rel=0.1)
    assert np.mean([one.error for one in differences]) == pytest.approx(wanted, rel=0.05)
    assert np.mean([one.mean for one in differences]) == pytest.approx(0.75, abs=0.02)


def test_a_difference_is_paired_by_document() -> None:
    objective = objective_of([Entry("a", 3)])
    ours, theirs = {"a": np.array([1.0, 2.0, 3.0])}, {"a": np.array([0.5, 1.5, 2.5])}
    difference = objective.difference(ours, theirs)
    assert (difference.mean, difference.error) == (0.5, 0.0)
