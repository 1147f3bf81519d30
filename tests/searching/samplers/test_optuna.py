"""What all samplers by Optuna have in common: what they are shown, and how they breed."""

from __future__ import annotations

import pytest

from evomerge.searching.samplers._optuna import distribution, remembered
from tests.helpers.game import COORDINATES, MODULES, Game, Make, fitness


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_nsga_proposes_its_population_and_breeds_from_the_known_points(name: str, make: Make) -> None:
    sampler = make(name, population=6, crossover=0.0, mutation=0.0)
    game = Game(sampler, name)
    game.ask(0)
    game.tell(0)
    game.ask(1)
    game.tell(1, lambda genome: fitness(genome) - 100.0)
    children = game.ask(2).genomes
    assert len(children) == 6
    assert all(child in [*game.genomes[0], *game.genomes[1]] for child in children)
    assert any(child in game.genomes[0] for child in children)


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_points_proposed_together_are_proposed_in_view_of_each_other(name: str, make: Make) -> None:
    whole = Game(make(name, population=3, startup=2), name).play(2)
    assert len({tuple(genome.items()) for genome in whole.genomes[1]}) == 3
    assert whole.replay(make(name, population=3, startup=2)).genomes == whole.genomes


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_a_memory_keeps_the_best_and_the_newest(name: str) -> None:
    told = {number: (float(-number),) for number in range(10)}
    assert remembered(told, 4) == [0, 1, 8, 9]
    assert remembered({number: (float(number),) for number in range(10)}, 5) == [5, 6, 7, 8, 9]
    assert remembered(told, None) == list(range(10))
    assert MODULES[name].Options().model_dump()["memory"] > 100


def test_a_finished_trial_holds_the_values_of_every_kind_of_coordinate() -> None:
    for coordinate in COORDINATES:
        held = distribution(coordinate)
        for unit in (0.0, 0.4, 0.7, 1.0):
            value = coordinate.from_unit(unit)
            assert held._contains(held.to_internal_repr(value))
            assert held.to_external_repr(held.to_internal_repr(value)) == value


def test_of_several_objectives_the_memory_keeps_the_front() -> None:
    told = {0: (1.0, 0.0), 1: (0.0, 1.0), 2: (-1.0, -1.0), 3: (-2.0, -2.0), 4: (-3.0, -3.0)}
    assert remembered(told, 4) == [0, 1, 3, 4]
