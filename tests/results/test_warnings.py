"""Each warning comes where it should, and healthy searches have none. The searches are simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evomerge.results import warnings
from evomerge.searching.spaces.genes import Coordinate
from evomerge.searching.spaces.space import SearchSpace
from evomerge.studies.experiment import Budget, SamplerChoice
from evomerge.studies.trials import Trial
from tests.helpers.trials import make_trial

GENES = {"weight": 6, "density": 2, "lambda": 1}
COORDINATES = [
    Coordinate(f"{gene}.l{at}", 0.0, 1.0, 0.5, log=False) for gene, count in GENES.items() for at in range(count)
]
POPULATION, BLOCK, KEPT = 12, 6, 200


class Landscape:
    """A quadratic in which every gene has a part. importance: gene -> factor of its curvature."""

    def __init__(self, seed: int, **importance: float) -> None:
        random = np.random.default_rng(seed)
        self.best = random.uniform(0.25, 0.75, len(COORDINATES))
        scale = np.array([importance.get(c.name.partition(".")[0], 1.0) for c in COORDINATES])
        self.curvature = scale * random.uniform(0.5, 2.0, len(COORDINATES))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(0.8 - (self.curvature * (points - self.best) ** 2).sum(axis=-1))


def search(
    landscape: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
    generations: int = 40,
    *,
    noise: float = 0.01,
    blocks: int = 0,
    decay: float = 0.93,
    fitted: float = 0.0,
) -> list[Trial]:
    """A plain evolution strategy.

    Args:
        noise: of a value, on all documents; with blocks, of a candidate's block beside the documents' own.
        blocks: of documents, fresh each generation; 0 scores all documents at once.
        decay: of the step, a generation.
        fitted: what the search's documents add to a value, as against those kept apart.
    """
    random = np.random.default_rng([seed, 1])
    mean, sigma = np.full(len(COORDINATES), 0.5), 0.2
    trials: list[Trial] = []
    incumbent = -np.inf

    def add(generation: int, slot: int, point: np.ndarray, value: float, **rest: object) -> None:
        trials.append(trial(len(trials), generation, slot, point, value, **rest))

    for generation in range(generations):
        points = np.clip(mean + sigma * random.standard_normal((POPULATION, len(mean))), 0.0, 1.0)
        true = landscape(points)
        if blocks:
            rows = true[:, None] + 0.1 * random.standard_normal(blocks) + fitted
            rows = rows + noise * random.standard_normal(rows.shape)
            values = rows.mean(axis=1)
            for slot in range(POPULATION):
                row = tuple(rows[slot].tolist())
                add(
                    generation,
                    slot,
                    points[slot],
                    values[slot],
                    blocks=row,
                    all_documents=False,
                    documents=blocks * BLOCK,
                )
        else:
            values = true + noise * random.standard_normal(POPULATION)
            for slot in range(POPULATION):
                add(generation, slot, points[slot], values[slot], documents=100)
        mean = points[np.argsort(-values)[: POPULATION // 4]].mean(axis=0)
        sigma *= decay
        if blocks and generation % 4 == 3:
            apart = float(landscape(mean) + noise * random.standard_normal() * np.sqrt(BLOCK / KEPT))
            add(
                *(generation, 0, mean, apart),
                role="select",
                incumbent=apart > incumbent,
                all_documents=False,
                documents=KEPT,
            )
            incumbent = max(apart, incumbent)
    return trials


def trial(
    number: int, generation: int, slot: int, point: Sequence[float] | np.ndarray, value: float, **rest: object
) -> Trial:
    genome: dict[str, float | str] = {c.name: float(u) for c, u in zip(COORDINATES, point, strict=True)}
    values: dict[str, Any] = {"tasks": {"t": 0.5}, "climbed": {"t": 0.5}, **rest}
    return make_trial(number, float(value), genome=genome, generation=generation, slot=slot, **values)


def said(trials: Sequence[Trial], *words: str, **options: bool) -> bool:
    """Whether there is one warning with these words."""
    found = [one for one in warnings.after(trials, COORDINATES, **options) if all(word in one for word in words)]
    assert len(found) < 2, found
    return bool(found)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [0, 4])
def test_healthy_searches_have_no_warnings(blocks: int) -> None:
    alarms = []
    for seed in range(50):
        noise = float(np.random.default_rng(seed).choice([0.005, 0.02, 0.05]))
        found = warnings.after(search(Landscape(seed), seed, noise=noise, blocks=blocks), COORDINATES)
        alarms += [(seed, one) for one in found]
    assert len(alarms) <= 3, alarms


@pytest.mark.parametrize("blocks", [0, 4])
def test_a_gene_that_does_nothing_is_named(blocks: int) -> None:
    named = [
        said(search(Landscape(seed, density=0.0), seed, blocks=blocks), "no effect was seen of density")
        for seed in range(10)
    ]
    assert sum(named) >= 7


def test_without_enough_trials_no_gene_is_named() -> None:
    for seed in range(10):
        assert not said(search(Landscape(seed, density=0.0), seed, generations=4), "no effect")


def test_where_noise_hides_all_genes_none_is_named() -> None:
    for seed in range(10):
        assert not said(search(Landscape(seed, density=0.0), seed, noise=10.0), "no effect")


def test_an_optimum_in_the_middle_is_an_effect() -> None:
    for seed in range(5):
        landscape = Landscape(seed)
        landscape.best[:] = 0.5
        assert not said(search(landscape, seed, decay=1.0), "no effect")


def test_of_several_objectives_a_gene_that_matters_to_one_is_not_idle() -> None:
    first, second = Landscape(0, density=0.0), Landscape(1, density=3.0)
    trials = []
    for one in search(first, generations=40, decay=1.0):
        point = np.array(list(one.genome.values()), dtype=float)
        trials.append(replace(one, climbed={"a": one.value or 0.0, "b": float(second(point))}))
    assert said(trials, "no effect was seen of density")
    assert not said(trials, "no effect", pareto=True)


def test_a_method_that_makes_no_difference_is_named() -> None:
    method = Coordinate("method", 0.0, 1.0, "a", False, ("a", "b", "c"))
    random = np.random.default_rng(0)
    trials = [
        replace(one, genome={**one.genome, "method": str(random.choice(method.choices))})
        for one in search(Landscape(0))
    ]
    (warning,) = warnings.after(trials, [*COORDINATES, method])
    assert "no effect was seen of method" in warning
    assert "search with one method" in warning
    space = SearchSpace.model_validate(
        {
            "method": ["ties", "dare_ties"],
            "genes": {"weight": {"low": 0.0, "high": 1.0}},
            "fixed": {"density": 0.5},
        }
    )
    weight = {"weight": trials[0].genome["weight.l0"]}
    found = warnings.coordinates_of(
        space, (), [replace(t, genome={**weight, "method": t.genome["method"]}) for t in trials]
    )
    assert [(c.name, c.choices) for c in found] == [("weight", ()), ("method", ("a", "b", "c"))]
    assert warnings.coordinates_of(space, (), []) == []


def test_a_fitness_that_does_not_move_is_told() -> None:
    flat = [replace(one, value=0.5) for one in search(Landscape(0), generations=10)]
    assert said(flat, "in 10 of 10 generations all candidates have the same fitness", "`climb`")
    half = [replace(one, value=one.value if one.generation % 2 else 0.5) for one in search(Landscape(0))]
    assert not said(half, "same fitness")
    assert said(flat, "same fitness", pareto=True)


@pytest.mark.parametrize("blocks", [0, 4])
def test_a_search_that_still_rises_can_go_on(blocks: int) -> None:
    slow = [
        replace(one, value=0.002 * one.generation + 1e-4 * (one.number % 7), incumbent=one.role == "select")
        for one in search(Landscape(0), generations=30, blocks=blocks, noise=0.005)
    ]
    assert said(slow, f"--candidates {2 * len(slow)}")
    assert not said(slow, "--candidates", ended=False)
    assert not said(slow, "--candidates", pareto=True)


def test_a_search_fitted_to_its_documents_is_told() -> None:
    assert said(search(Landscape(0), blocks=4, fitted=0.2), "has fitted its documents")
    assert not said(search(Landscape(0), blocks=4, fitted=0.005), "has fitted its documents")


def test_a_search_scored_on_all_documents_has_none_to_compare_with() -> None:
    assert not said(search(Landscape(0), fitted=0.2), "fitted")


def test_many_failures_are_told_with_the_most_frequent_reason() -> None:
    trials = search(Landscape(0), generations=10)
    broken = [
        replace(one, value=None, reason="not finite\nlog" if one.number % 3 else "timeout")
        if one.number % 2
        else one
        for one in trials
    ]
    assert said(broken, "60 of 120 candidates failed, 40 of them with 'not finite'")
    few = [replace(one, value=None, reason="timeout") if one.number < 12 else one for one in trials]
    assert not said(few, "failed")


def test_a_study_without_trials_has_no_warnings() -> None:
    assert warnings.after([], COORDINATES) == []


# --- before ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidates", "sampler", "expected"),
    [
        (89, {"name": "cma"}, "89 candidates are few for 9 genes"),
        (90, {"name": "cma"}, None),
        (89, {"name": "cma", "gradient": 10}, None),
        (20, {"name": "gradient"}, None),
        (20, {"name": "random"}, None),
        (120, {"name": "nsga2", "population": 32}, "120 candidates are 3.8 generations of 32"),
        (160, {"name": "nsga2", "population": 32}, None),
        (None, {"name": "cma"}, None),
    ],
)
def test_a_budget_too_small_for_the_genes(
    candidates: int | None, sampler: dict[str, object], expected: str | None
) -> None:
    budget = Budget(candidates=candidates) if candidates else Budget(hours=1.0)
    found = warnings.before(COORDINATES, budget, SamplerChoice.model_validate(sampler))
    assert [expected in one for one in found] == [True] if expected else not found
