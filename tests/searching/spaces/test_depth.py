"""How values spread over depth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.searching.spaces import depth


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
