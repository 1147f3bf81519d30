"""Coordinates: what the unit interval means for a number, a number with a step and a choice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.searching.spaces.genes import Coordinate


@given(st.floats(0, 1), st.booleans())
def test_the_unit_interval_maps_onto_the_range_and_back(unit: float, log: bool) -> None:
    coordinate = Coordinate("x", 0.01, 10.0, 1.0, log)
    value = coordinate.from_unit(unit)
    assert 0.01 <= float(value) <= 10.0
    assert coordinate.to_unit(value) == pytest.approx(unit, abs=1e-9)


def test_units_outside_are_clipped_to_the_bounds() -> None:
    coordinate = Coordinate("x", -1.0, 3.0, 0.0, log=False)
    assert (coordinate.from_unit(-0.2), coordinate.from_unit(1.7)) == (-1.0, 3.0)


def test_a_choice_is_an_equal_part_of_the_unit_interval() -> None:
    choice = Coordinate("method", 0.0, 1.0, "x", False, ("x", "y", "z"))
    assert [choice.from_unit(unit) for unit in (-1.0, 0.0, 0.3, 0.34, 0.66, 0.67, 1.0, 2.0)] == [*"xxxyyzzz"]
    assert all(choice.from_unit(choice.to_unit(name)) == name for name in choice.choices)


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
