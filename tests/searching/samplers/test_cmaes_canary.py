"""The private parts of the package `cmaes` that `samplers._cmaes` uses: one test each, which names what went."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cmaes import CMA, CatCMAwM

from evomerge.searching.samplers import _cmaes


def cma() -> Any:
    return CMA(mean=np.array([0.2, 0.8]), sigma=0.3, population_size=4, lr_adapt=True, seed=0)


def catcma() -> Any:
    """Two numbers, one whole number of four values and one choice of three categories."""
    return CatCMAwM(
        x_space=[[0.0, 1.0]] * 2,
        z_space=[[0.125, 0.375, 0.625, 0.875]],
        c_space=[3],
        population_size=6,
        mean=np.array([0.2, 0.8, 0.5]),
        sigma=0.3,
    )


def told(engine: Any) -> Any:
    """The engine after one generation."""
    points = [engine.ask() for _ in range(engine.population_size)]
    engine.tell([(point, float(rank)) for rank, point in enumerate(points)])
    return engine


@pytest.mark.parametrize("name", ["_mean", "_sigma", "_eigen_decomposition"])
def test_cma_has_its_private_part(name: str) -> None:
    assert hasattr(cma(), name), f"cmaes.CMA.{name} went: mend samplers/_cmaes.py"


@pytest.mark.parametrize("name", ["_mean", "_sigma", "_C", "_rng", "_q", "_iqhist_values"])
def test_catcma_has_its_private_part(name: str) -> None:
    assert hasattr(catcma(), name), f"cmaes.CatCMAwM.{name} went: mend samplers/_cmaes.py"


@pytest.mark.parametrize("make", [cma, catcma])
def test_the_mean_is_the_one_that_the_engine_was_given(make: Any) -> None:
    assert _cmaes.mean(make())[:2].tolist() == [0.2, 0.8], "_mean is no longer the mean of the numbers"


def test_a_mean_that_is_clipped_is_where_the_engine_goes_on() -> None:
    engine = cma()
    engine._mean = np.array([-0.5, 1.5])
    _cmaes.clip_mean(engine)
    points = np.array([engine.ask() for _ in range(2000)])
    assert points.mean(axis=0) == pytest.approx([0.0, 1.0], abs=0.05), "CMA.ask no longer draws about _mean"


def test_points_deviate_by_the_step_and_the_covariance() -> None:
    engine = told(cma())
    normal = np.random.default_rng(0).standard_normal((20_000, 2))
    points = _cmaes.deviate(engine, normal)
    own = np.array([engine.ask() for _ in range(20_000)])
    assert np.cov(points.T) == pytest.approx(np.cov(own.T), abs=0.02), (
        "_eigen_decomposition no longer gives B and D of CMA's own distribution"
    )


def test_the_step_size_is_the_one_that_the_engine_draws_with() -> None:
    engine = cma()
    _cmaes.limit_step(engine, 1e-6)
    assert np.ptp([engine.ask() for _ in range(50)], axis=0).max() < 1e-4, "CMA.ask no longer draws with _sigma"


def test_catcmas_step_size_and_covariance_are_those_that_it_draws_with() -> None:
    engine = catcma()
    _cmaes.limit_deviations(engine, np.full(3, 1e-6))
    assert _cmaes.deviations(engine).max() == pytest.approx(1e-6)
    points = [engine.ask().x for _ in range(50)]
    assert np.ptp(points, axis=0).max() < 1e-4, "CatCMAwM.ask no longer draws with _sigma and _C"


def test_catcma_draws_from_the_generator_that_it_is_given() -> None:
    first, second = catcma(), catcma()
    for engine in (first, second):
        _cmaes.draw_from(engine, np.random.RandomState(7))
    assert first.ask().x.tolist() == second.ask().x.tolist(), "CatCMAwM.ask no longer draws from _rng alone"


def test_the_shares_of_the_categories_sum_to_1() -> None:
    shares = _cmaes.category_shares(catcma())
    assert shares.shape == (1, 3), "CatCMAwM._q is no longer (choices, most categories)"
    assert shares.sum() == pytest.approx(1.0), "CatCMAwM._q no longer holds probabilities"


def test_penalties_are_measured_by_the_spread_that_was_set() -> None:
    engine = catcma()
    _cmaes.begin_spread(engine, 3.0)
    told(engine)
    assert engine._iqhist_values[-1] == 3.0, "CatCMAwM.tell no longer keeps its spreads in _iqhist_values"
