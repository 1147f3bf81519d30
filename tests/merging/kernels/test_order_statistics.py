from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.kernels.order_statistics import EXACT, Magnitudes, Variances
from evomerge.merging.kernels.steps import variance
from tests.helpers.merging import normal


def _magnitudes(expert: torch.Tensor) -> Magnitudes:
    return Magnitudes.of(torch.zeros_like(expert), [expert])


@given(st.integers(1, 2000), st.floats(0.001, 1.0))
@settings(max_examples=60, deadline=None)
def test_small_tensors_keep_the_density_exactly(size: int, density: float) -> None:
    expert = normal(size, seed=size)
    threshold, share = _magnitudes(expert).largest(density)
    kept = expert.abs() >= threshold
    assert int(kept.sum()) == max(1, int(density * size))
    assert share == pytest.approx(float(expert[kept].abs().sum() / expert.abs().sum()), rel=1e-5)


@pytest.mark.parametrize("density", [0.001, 0.05, 0.1, 0.333, 0.5, 0.9, 0.999, 1.0])
def test_large_tensors_keep_the_density_within_a_thousandth(density: float) -> None:
    expert = normal(8 * EXACT + 77) ** 3
    threshold, share = _magnitudes(expert).largest(density)
    kept = expert.abs() >= threshold
    assert abs(float(kept.double().mean()) - density) <= 1e-3
    assert share == pytest.approx(float(expert[kept].abs().sum() / expert.abs().sum()), abs=2e-3)


@pytest.mark.parametrize("size", [1000, 4 * EXACT])
def test_a_band_leaves_out_the_largest_and_keeps_the_density(size: int) -> None:
    expert = normal(size)
    low, high, _ = _magnitudes(expert).band(0.3, 0.05)
    sizes = expert.abs()
    assert abs(float((sizes > high).double().mean()) - 0.05) <= 1e-3
    assert abs(float(((sizes >= low) & (sizes <= high)).double().mean()) - 0.3) <= 1e-3


def test_a_band_that_needs_the_largest_takes_them() -> None:
    low, high, share = _magnitudes(torch.arange(1.0, 11.0)).band(0.95, 0.5)
    assert (low, high) == (1.0, 9.0)
    assert share == pytest.approx(45 / 55)
    assert _magnitudes(torch.arange(1.0, 11.0)).band(1.0, 0.5) == (0.0, math.inf, 1.0)


def test_magnitudes_that_tie_with_the_threshold_are_all_kept() -> None:
    expert = torch.tensor([1.0, 1.0, 1.0, 2.0])
    threshold, _ = _magnitudes(expert).largest(0.5)
    assert int((expert >= threshold).sum()) == 4


@pytest.mark.parametrize("size", [900, 3 * EXACT])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_elements_of_greatest_variance_and_their_squares(size: int, fraction: float) -> None:
    deltas = [normal(size, seed=1), normal(size, seed=2), normal(size, seed=3)]
    threshold, squares = Variances.of(torch.zeros(size), deltas).most(fraction)
    spread = torch.stack(deltas).var(dim=0, unbiased=False)
    selected = variance(deltas) >= threshold
    assert abs(float(selected.double().mean()) - fraction) <= 1e-3
    assert float(spread[selected].min()) >= float(spread[~selected].max()) * (1 - 1e-5)
    wanted = [float(delta[selected].double().square().sum()) for delta in deltas]
    assert squares == pytest.approx(wanted, rel=2e-3)


def test_one_expert_alone_differs_from_nobody() -> None:
    table = Variances.of(torch.zeros(5), [torch.ones(5)])
    assert table.most(0.5) == (math.inf, [0.0])
    assert table.most(1.0) == (0.0, [5.0])
