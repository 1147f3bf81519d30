"""What is CatCMA's own: categories, numbers of few values, and both beside continuous ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.searching.samplers import Problem, Result, _cmaes, catcma
from evomerge.searching.spaces.genes import Coordinate, Genome

METHODS = ("linear", "ties", "dare_ties", "della")
CHOICES = [Coordinate(f"method.{part}", 0.0, 1.0, "linear", False, METHODS[: 4 - i]) for i, part in enumerate("ab")]
FLOATS = [Coordinate(f"weight.l{layer}", -1.0, 1.0, 0.5, log=False) for layer in range(5)]
WHOLE = [Coordinate(f"rank.l{layer}", 0.0, 10.0, 5.0, False, step=1.0) for layer in range(3)]

Fitness = Callable[[Genome], float]


def make(coordinates: Sequence[Coordinate], seed: int = 0, **options: Any) -> catcma.CatCmaSampler:
    start = {c.name: c.init for c in coordinates}
    return catcma.make(Problem(coordinates, seed, [start]), catcma.Options.model_validate(options))


def play(sampler: catcma.CatCmaSampler, fitness: Fitness, generations: int) -> list[Genome]:
    """All candidates."""
    found: list[Genome] = []
    for number in range(generations):
        genomes = sampler.ask(number).genomes
        sampler.tell(number, [Result(fitness(genome)) for genome in genomes])
        found += genomes
    return found


def fitness(genome: Genome) -> float:
    """Best at ties and ties; where there are floats at -0.3, and at ranks of 7."""
    penalty = 0.0
    for name, value in genome.items():
        if isinstance(value, str):
            penalty += value != "ties"
        elif name.startswith("rank"):
            penalty += ((value - 7.0) / 10.0) ** 2
        else:
            penalty += (value + 0.3) ** 2
    return -penalty


def best(coordinates: Sequence[Coordinate]) -> Genome:
    return {c.name: "ties" if c.choices else 7.0 if c in WHOLE else -0.3 for c in coordinates}


@pytest.mark.slow
@pytest.mark.parametrize(
    "coordinates",
    [CHOICES, FLOATS, WHOLE, CHOICES[:1], WHOLE[:1], [*CHOICES, *FLOATS], [*WHOLE, *FLOATS], [*WHOLE, *CHOICES]],
    ids=lambda coordinates: "-".join(c.name for c in coordinates),
)
def test_it_finds_the_best_of_every_kind_of_space(coordinates: list[Coordinate]) -> None:
    sampler = make(coordinates)
    play(sampler, fitness, 80)
    found = sampler.recommend()
    assert found is not None
    assert list(found) == [c.name for c in coordinates]
    for name, value in best(coordinates).items():
        assert found[name] == (value if isinstance(value, str) else pytest.approx(value, abs=0.02))


@pytest.mark.slow
def test_categories_whole_numbers_and_floats_are_found_together_in_any_order() -> None:
    coordinates = [FLOATS[0], WHOLE[0], CHOICES[0], FLOATS[1], CHOICES[1], WHOLE[1], FLOATS[2]]
    sampler = make(coordinates)
    candidates = play(sampler, fitness, 100)
    found = sampler.recommend()
    assert found is not None
    assert [found[c.name] for c in CHOICES] == ["ties", "ties"]
    assert [found[c.name] for c in WHOLE[:2]] == pytest.approx([7.0, 7.0])
    ranks = np.array([float(genome["rank.l0"]) for genome in candidates])
    assert set(ranks) <= set(range(11))


@pytest.mark.slow
def test_neither_categories_nor_whole_numbers_freeze() -> None:
    """The margin: after the search has long settled, other values are still tried."""
    coordinates = [*WHOLE[:1], *CHOICES[:1], *FLOATS[:1]]
    late = play(make(coordinates), fitness, 200)[-300:]
    assert len({genome["rank.l0"] for genome in late}) > 1
    assert len({genome["method.a"] for genome in late}) > 1


def test_known_points_get_more_documents_and_the_best_of_them_is_the_first_mean() -> None:
    coordinates = [*FLOATS, *CHOICES]
    starts = [{c.name: c.init for c in coordinates}, {c.name: "ties" if c.choices else -0.9 for c in coordinates}]
    sampler = catcma.make(Problem(coordinates, 0, starts), catcma.Options(sigma=0.001))
    first = sampler.ask(0)
    assert (first.genomes, first.effort) == (starts, 4)
    assert sampler.ask(1).effort == 1
    sampler.tell(0, [Result(0.0), Result(1.0)])
    assert sampler.recommend() == starts[1]
    genomes = [genome for number in range(1, 40) for genome in sampler.ask(number).genomes]
    assert all(abs(float(genome["weight.l0"]) + 0.9) < 0.02 for genome in genomes)
    share = np.mean([genome["method.a"] == "ties" for genome in genomes])
    assert share == pytest.approx(0.5 + 0.5 / 4, abs=0.06)


def test_an_ask_leaves_no_trace() -> None:
    sampler, other = make([*FLOATS, *CHOICES]), make([*FLOATS, *CHOICES])
    other.ask(9)  # before the known points are told, and never told itself
    first = play(sampler, fitness, 5)
    other.ask(8)
    assert play(other, fitness, 5) == first


@pytest.mark.slow
def test_generations_told_in_another_order_than_asked_move_it_towards_the_best() -> None:
    sampler = make([*FLOATS, *CHOICES])
    waiting: dict[int, list[Genome]] = {}
    for number in range(120):
        waiting[number] = list(sampler.ask(number).genomes)
        if len(waiting) == 5:
            done = max(waiting) if number % 2 else min(waiting)
            sampler.tell(done, [Result(fitness(genome)) for genome in waiting.pop(done)])
    found = sampler.recommend()
    assert found is not None
    assert fitness(found) > -0.05


def test_a_generation_of_equal_values_changes_nothing() -> None:
    sampler = make([*FLOATS, *CHOICES])
    play(sampler, fitness, 5)
    before = sampler.recommend()
    sampler.tell(5, [Result(0.5)] * len(sampler.ask(5).genomes))
    assert sampler.recommend() == before


def test_an_optimum_in_a_corner_is_found() -> None:
    sampler = make(FLOATS)
    play(sampler, lambda genome: sum(float(value) for value in genome.values()), 60)
    assert sampler.recommend() == pytest.approx({c.name: 1.0 for c in FLOATS}, abs=0.02)


@pytest.mark.slow
def test_noise_does_not_blow_up_the_step() -> None:
    sampler = make(FLOATS)
    random = np.random.default_rng(0)
    play(sampler, lambda genome: float(random.normal()), 200)
    engine = sampler._engine
    assert engine is not None
    assert _cmaes.deviations(engine).max() <= 0.3 * (1.0 + 1e-9)


def test_only_the_order_of_the_values_counts() -> None:
    first = play(make([*FLOATS, *CHOICES]), fitness, 10)
    assert play(make([*FLOATS, *CHOICES]), lambda genome: float(np.exp(3 * fitness(genome))), 10) == first


def test_equal_losses_share_their_place() -> None:
    assert catcma._ranks(np.array([3.0, 1.0, 3.0, 2.0, 1.0])).tolist() == [3.5, 0.5, 3.5, 2.0, 0.5]


def test_the_population_comes_from_the_options() -> None:
    sampler = make([*FLOATS, *CHOICES], population=9)
    assert [len(sampler.ask(number).genomes) for number in range(3)] == [1, 9, 9]
