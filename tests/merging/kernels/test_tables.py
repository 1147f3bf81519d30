from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.kernels import tables
from evomerge.merging.kernels.tables import (
    EXACT,
    KINDS,
    POINTS,
    ColumnGram,
    Gram,
    Importance,
    Magnitudes,
    RowGram,
    RowRanks,
    Variances,
)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _magnitudes(expert: torch.Tensor) -> Magnitudes:
    return Magnitudes.of(torch.zeros_like(expert), [expert])


@given(st.integers(1, 2000), st.floats(0.001, 1.0))
@settings(max_examples=60, deadline=None)
def test_small_tensors_keep_the_density_exactly(size: int, density: float) -> None:
    expert = _normal(size, seed=size)
    threshold, share = _magnitudes(expert).largest(density)
    kept = expert.abs() >= threshold
    assert int(kept.sum()) == max(1, int(density * size))
    assert share == pytest.approx(float(expert[kept].abs().sum() / expert.abs().sum()), rel=1e-5)


@pytest.mark.parametrize("density", [0.001, 0.05, 0.1, 0.333, 0.5, 0.9, 0.999, 1.0])
def test_large_tensors_keep_the_density_within_a_thousandth(density: float) -> None:
    expert = _normal(8 * EXACT + 77) ** 3
    threshold, share = _magnitudes(expert).largest(density)
    kept = expert.abs() >= threshold
    assert abs(float(kept.double().mean()) - density) <= 1e-3
    assert share == pytest.approx(float(expert[kept].abs().sum() / expert.abs().sum()), abs=2e-3)


@pytest.mark.parametrize("size", [1000, 4 * EXACT])
def test_a_band_leaves_out_the_largest_and_keeps_the_density(size: int) -> None:
    expert = _normal(size)
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (5, 7), (2, 3, 4)], ids=str)
def test_every_kind_has_a_table_of_any_shape_made_of_arrays(kind: str, shape: tuple[int, ...]) -> None:
    base = _normal(*shape)
    table = KINDS[kind].of(base, [base + 0.1])
    assert all(isinstance(getattr(table, field.name), np.ndarray) for field in fields(table))
    assert all(np.isfinite(getattr(table, field.name)).all() for field in fields(table))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(kind: str, bad: float) -> None:
    base, expert = torch.zeros(3, 4), torch.zeros(3, 4)
    expert[1, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        KINDS[kind].of(base, [expert])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_tables_do_not_depend_on_threads(kind: str) -> None:
    base, expert = _normal(300, 5001), _normal(300, 5001, seed=1)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(KINDS[kind].of(base, [base + 0.1 * expert]))
    torch.set_num_threads(before)
    assert all(np.array_equal(getattr(found[0], f.name), getattr(found[1], f.name)) for f in fields(found[0]))


def test_dot_products_are_those_of_base_and_task_vectors() -> None:
    base, a, b = _normal(6, 7), _normal(6, 7, seed=1), _normal(6, 7, seed=2)
    vectors = torch.stack([base, a - base, b - base]).double()
    flat = vectors.reshape(3, -1)
    np.testing.assert_allclose(Gram.of(base, [a, b]).dots, (flat @ flat.T).numpy(), rtol=1e-12)
    by_row = torch.einsum("irc,jrc->rij", vectors, vectors).numpy()
    np.testing.assert_allclose(RowGram.of(base, [a, b]).dots, by_row, rtol=1e-12)
    by_column = torch.einsum("irc,jrc->cij", vectors, vectors).numpy()
    np.testing.assert_allclose(ColumnGram.of(base, [a, b]).dots, by_column, rtol=1e-12)
    weights = torch.stack([a, b]).double().reshape(2, -1)
    found = tables.dots_of(Gram.of(base, [a, b]).dots, task_vectors=False)
    wanted = (weights @ weights.T).numpy()
    # δ is rounded to float32: an error of the vectors' size, however small their product.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-7 * wanted.max())


def test_a_task_vector_of_zero_has_no_length_at_all() -> None:
    base = _normal(1000)
    assert Gram.of(base, [base.clone()]).dots[1].tolist() == [0.0, 0.0]


def test_short_rows_are_ranked_whole_and_long_ones_at_even_steps() -> None:
    expert = _normal(4, POINTS)
    assert np.array_equal(
        RowRanks.of(torch.zeros_like(expert), [expert]).values, expert.abs().sort(dim=1).values.numpy()
    )
    expert = _normal(3, 10_001)
    wanted = expert.abs().sort(dim=1).values[:, torch.linspace(0, 10_000, POINTS).round().long()]
    assert np.array_equal(RowRanks.of(torch.zeros_like(expert), [expert]).values, wanted.numpy())


def test_the_lean_is_the_mass_weighted_mean_rank() -> None:
    table = RowRanks.of(torch.zeros(1, 3), [torch.tensor([[3.0, -1.0, 2.0]])])
    assert float(table.lean[0]) == pytest.approx((0 * 1 + 0.5 * 2 + 1 * 3) / 6)


@pytest.mark.parametrize("size", [900, 3 * EXACT])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_elements_of_greatest_variance_and_their_squares(size: int, fraction: float) -> None:
    deltas = [_normal(size, seed=1), _normal(size, seed=2), _normal(size, seed=3)]
    threshold, squares = Variances.of(torch.zeros(size), deltas).most(fraction)
    spread = torch.stack(deltas).var(dim=0, unbiased=False)
    selected = tables.variance(deltas) >= threshold
    assert abs(float(selected.double().mean()) - fraction) <= 1e-3
    assert float(spread[selected].min()) >= float(spread[~selected].max()) * (1 - 1e-5)
    wanted = [float(delta[selected].double().square().sum()) for delta in deltas]
    assert squares == pytest.approx(wanted, rel=2e-3)


def test_one_expert_alone_differs_from_nobody() -> None:
    table = Variances.of(torch.zeros(5), [torch.ones(5)])
    assert table.most(0.5) == (math.inf, [0.0])
    assert table.most(1.0) == (0.0, [5.0])


def test_importance_is_the_change_times_how_far_its_row_moved() -> None:
    base, expert = _normal(6, 9), _normal(6, 9, seed=1)
    table = Importance.of(base, [expert])
    p, q = expert.softmax(1), base.softmax(1)
    np.testing.assert_allclose(table.divergence, (p * (p / q).log()).sum(1).numpy(), rtol=1e-4)
    scores = ((expert - base).abs() * torch.from_numpy(table.divergence)[:, None]).reshape(-1).sort().values
    quarter, half, three = (float(scores[int(share * 53)]) for share in (0.25, 0.5, 0.75))
    assert float(table.threshold[0]) == pytest.approx(half + 1.5 * (three - quarter), rel=1e-5)


def test_rows_are_the_last_dimension() -> None:
    assert tables.rows_of((8, 4, 16)) == (32, 16)
    assert tables.rows_of((16,)) == (1, 16)
    assert tables.rows_of((3, 0)) == (3, 0)
