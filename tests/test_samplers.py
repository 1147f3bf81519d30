"""The contract of every sampler, found by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge import plugins
from evomerge.samplers import Sampler
from evomerge.space import Coordinate, Genome, initial

SAMPLERS = plugins.names("samplers")
COORDINATES = [
    Coordinate("a", 0.0, 1.5, 0.5, log=False),
    Coordinate("b", 0.01, 1.0, 0.1, log=True),
    Coordinate("c", -1.0, 1.0, 1.0, log=False),
    Coordinate("d", 0.0, 1.0, "poor", False, ("poor", "better", "best")),
]


def make(name: str, seed: int = 0, coordinates: list[Coordinate] = COORDINATES, **options: Any) -> Sampler:
    module = plugins.load("samplers", name)
    starts = [initial(coordinates), {**initial(coordinates), "a": 1.4}]
    sampler: Sampler = module.make(coordinates, module.Options.model_validate(options), seed, starts)
    return sampler


def fitness(genome: Genome) -> float:
    a, b, c = (float(genome[name]) for name in "abc")
    choice = COORDINATES[3].choices.index(str(genome["d"])) - 2
    return float(-((a - 1.2) ** 2) - (np.log10(b) + 0.5) ** 2 - (c + 0.3) ** 2 + choice)


def _within(coordinate: Coordinate, value: float | str) -> bool:
    if isinstance(value, str):
        return value in coordinate.choices
    return coordinate.low <= value <= coordinate.high


def play(sampler: Sampler, generations: int) -> list[list[Genome]]:
    found = []
    for _ in range(generations):
        genomes = sampler.ask()
        sampler.tell([fitness(genome) for genome in genomes])
        found.append(genomes)
    return found


def test_all_samplers_are_found() -> None:
    assert {"cma", "random", "tpe"} <= set(SAMPLERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_are_a_pure_function_of_seed_and_what_was_told(name: str) -> None:
    whole = play(make(name), 6)
    assert play(make(name), 6) == whole
    assert play(make(name, seed=1), 6)[1:] != whole[1:]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_global_generators_are_not_used(name: str) -> None:
    np.random.seed(0)
    first = play(make(name), 3)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    assert play(make(name), 3) == first
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_proposal_lies_within_its_bounds(name: str) -> None:
    for generation in play(make(name), 10):
        for genome in generation:
            assert list(genome) == [c.name for c in COORDINATES]
            assert all(_within(c, genome[c.name]) for c in COORDINATES)
            assert all(type(genome[c.name]) is (str if c.choices else float) for c in COORDINATES)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_known_points_come_first(name: str) -> None:
    assert make(name).ask() == [
        {"a": 0.5, "b": 0.1, "c": 1.0, "d": "poor"},
        {"a": 1.4, "b": 0.1, "c": 1.0, "d": "poor"},
    ]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_lone_coordinate_can_be_searched(name: str) -> None:
    sampler = make(name, coordinates=COORDINATES[:1])
    for _ in range(4):
        genomes = sampler.ask()
        sampler.tell([-genome["a"] for genome in genomes])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_flat_fitness_does_not_stop_it(name: str) -> None:
    sampler = make(name)
    for _ in range(15):
        sampler.tell([0.5] * len(sampler.ask()))


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_may_be_asked_again_without_being_told(name: str) -> None:
    sampler = make(name)
    first = sampler.ask()
    second = sampler.ask()
    sampler.tell([fitness(genome) for genome in second])
    assert first != second
    third = sampler.ask()
    assert second != third


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "random"])
def test_it_finds_better_points_than_it_began_with(name: str) -> None:
    generations = play(make(name), 20)
    first = max(map(fitness, generations[0]))
    last = max(fitness(genome) for generation in generations[-3:] for genome in generation)
    assert last > first
    assert last > -0.1


def test_cma_takes_its_population_from_the_options() -> None:
    assert [len(generation) for generation in play(make("cma", population=9), 3)] == [2, 9, 9]


def test_cma_starts_from_the_best_known_point() -> None:
    sampler = make("cma", sigma=0.001)
    sampler.ask()
    sampler.tell([0.0, 1.0])
    assert all(abs(genome["a"] - 1.4) < 0.05 for genome in sampler.ask())
