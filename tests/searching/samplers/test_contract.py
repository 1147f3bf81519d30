"""The contract of every sampler; new samplers are found by themselves."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from evomerge import plugins
from evomerge.errors import ConfigError
from evomerge.searching import samplers
from evomerge.searching.samplers import Result, SamplerOptions, generator
from evomerge.searching.spaces.genes import Genome
from tests.helpers.game import (
    COORDINATES,
    MODULES,
    NUMBERS,
    SAMPLERS,
    SEARCHERS,
    SEVERAL_OBJECTIVES,
    SHORT,
    Game,
    Make,
    fitness,
    judge,
    length,
    within,
)

SLOW = ("torch", "transformers", "optuna", "optunahub", "cma", "cmaes", "scipy")


def test_all_samplers_are_found() -> None:
    wanted = {"pycma", "random", "tpe", "gp", "nsga2", "nsga3", "qmc", "optunahub"}
    assert wanted <= set(SAMPLERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_its_module_says_what_it_is_and_what_it_wants(name: str) -> None:
    module = MODULES[name]
    assert 20 < len(plugins.summary("samplers", name)) <= 116
    assert all(
        type(getattr(module, flag)) is bool
        for flag in ("FRESH_DOCUMENTS", "SEVERAL_OBJECTIVES", "WANTS_DOCUMENT_SCORES", "LEARNS")
    )
    assert issubclass(module.Options, SamplerOptions)
    text = "\n".join(kind.__doc__ or "" for kind in module.Options.__mro__)
    assert [option for option in module.Options.model_fields if f"{option}:" not in text] == []


def test_a_sampler_loads_by_its_name_and_an_unknown_name_is_refused_with_the_nearest() -> None:
    assert samplers.load("qmc") is MODULES["qmc"]
    with pytest.raises(ConfigError, match=r"unknown sampler 'pycmaa'\. Did you mean 'pycma'"):
        samplers.load("pycmaa")


@pytest.mark.parametrize("name", SAMPLERS)
def test_its_module_and_its_options_load_no_library_that_is_slow_to_import(name: str) -> None:
    code = (
        "import sys; from evomerge.searching import samplers",
        f"module = samplers.load({name!r})",
        "values = {'package': 'any'} if 'package' in module.Options.model_fields else {}",
        "module.Options.model_validate(values).climbs_gradients",
        f"print(*[name for name in {SLOW} if name in sys.modules])",
    )
    ran = subprocess.run([sys.executable, "-c", "\n".join(code)], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_asks_for_gradients_exactly_where_its_options_say_that_it_climbs_them(name: str, make: Make) -> None:
    for options in ({}, {"gradient": 3}) if "gradient" in MODULES[name].Options.model_fields else ({},):
        asked = Game(make(name, **options), name).play(length(name, 6)).asked.values()
        required = {"package": "any"} if name == "optunahub" else {}
        choice = MODULES[name].Options.model_validate({**required, **options})
        assert any(generation.gradient for generation in asked) == choice.climbs_gradients


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_learns_exactly_if_its_proposals_depend_on_the_scores(name: str, make: Make) -> None:
    def played(value: Callable[[Genome], float]) -> list[Genome]:
        game = Game(make(name), name)
        for number in range(length(name, 10)):
            game.ask(number)
            game.tell(number, value)
        return [genome for number in sorted(game.genomes) for genome in game.genomes[number]]

    learned = played(fitness) != played(lambda genome: -fitness(genome) - float(genome["a"]))
    assert learned == MODULES[name].LEARNS


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no_such_option"):
        MODULES[name].Options.model_validate({"no_such_option": 1})


@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_are_a_pure_function_of_seed_and_what_was_told(name: str, make: Make) -> None:
    whole = Game(make(name), name).play(length(name, 8))
    assert whole.replay(make(name)).genomes == whole.genomes
    other = Game(make(name, seed=1), name).play(2)
    assert other.genomes[0] == whole.genomes[0]
    # One that follows the gradient from the starts needs no chance.
    assert other.genomes[1] != whole.genomes[1] or any(g.gradient for g in whole.asked.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("outstanding", [1, 3])
def test_generations_told_late_and_out_of_order_are_replayed(name: str, outstanding: int, make: Make) -> None:
    whole = Game(make(name), name).play(length(name, 10), outstanding)
    again = whole.replay(make(name))
    assert again.genomes == whole.genomes
    assert again.sampler.recommend() == whole.sampler.recommend()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_generation_never_told_does_not_disturb_a_replay(name: str, make: Make) -> None:
    whole = Game(make(name), name).play(length(name, 10), outstanding=2, lost=[3, 5])
    assert whole.replay(make(name)).genomes == whole.genomes
    kept = {number: genomes for number, genomes in whole.genomes.items() if number not in (3, 5)}
    assert whole.replay(make(name), without=[3, 5]).genomes == kept


@pytest.mark.parametrize("name", SAMPLERS)
def test_generations_asked_together_differ(name: str, make: Make) -> None:
    game = Game(make(name), name).play(4, outstanding=2)
    rows = [tuple(g.items()) for number, genomes in game.genomes.items() if number for g in genomes]
    assert len(set(rows)) > len(rows) / 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_global_generators_are_neither_used_nor_changed(name: str, make: Make) -> None:
    def states() -> tuple[Any, ...]:
        kept: Any = np.random.get_state()
        return random.getstate(), kept[1].tobytes(), kept[2], torch.random.get_rng_state().numpy().tobytes()

    played = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = states()
        played.append(Game(make(name), name).play(length(name, 8)).genomes)
        assert states() == before
    assert played[0] == played[1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_proposal_lies_within_its_bounds(name: str, make: Make) -> None:
    game = Game(make(name), name).play(length(name, 8))
    for genomes in game.genomes.values():
        for genome in genomes:
            assert list(genome) == [c.name for c in COORDINATES]
            assert all(within(c, genome[c.name]) for c in COORDINATES)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_it_recommends_lies_within_the_bounds(name: str, make: Make) -> None:
    for generations in (0, 1, 4):
        best = Game(make(name), name).play(generations).sampler.recommend()
        assert best is None or (set(best) == {c.name for c in COORDINATES})
        assert best is None or all(within(c, best[c.name]) for c in COORDINATES)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_known_points_come_first(name: str, make: Make) -> None:
    assert list(make(name).ask(0).genomes) == [
        {"a": 0.5, "b": 0.1, "c": 1.0, "d": "poor", "e": 0.6},
        {"a": 1.4, "b": 0.1, "c": 1.0, "d": "poor", "e": 0.6},
    ]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_lone_coordinate_can_be_searched(name: str, make: Make) -> None:
    game = Game(make(name, coordinates=COORDINATES[:1]), name).play(length(name, 6))
    assert all(within(COORDINATES[0], g["a"]) for genomes in game.genomes.values() for g in genomes)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_number_of_few_values_is_searched(name: str, make: Make) -> None:
    game = Game(make(name), name).play(length(name, 10))
    tried = {genome["e"] for genomes in game.genomes.values() for genome in genomes}
    # Its slope is 0, and one that follows the gradient leaves it where it is.
    assert len(tried) > 1 or any(generation.gradient for generation in game.asked.values())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_flat_fitness_does_not_stop_it(name: str, make: Make) -> None:
    sampler = make(name)
    for number in range(length(name, 8)):
        generation = sampler.ask(number)
        flat = np.full(16, 0.5) if MODULES[name].WANTS_DOCUMENT_SCORES else None
        gradient = dict.fromkeys("abce", 0.0) if generation.gradient else None
        sampler.tell(number, [Result(0.5, (0.5,), flat, gradient)] * len(generation.genomes))
        assert generation.genomes


@pytest.mark.parametrize("name", SAMPLERS)
def test_failed_candidates_do_not_stop_it_and_are_not_recommended(name: str, make: Make) -> None:
    sampler = make(name)
    failed: list[Genome] = []
    scored: list[Genome] = []
    for number in range(length(name, 10)):
        generation = sampler.ask(number)
        results = judge(generation, name)
        worst = min(result.value for result in results)
        for slot, genome in enumerate(generation.genomes):
            (scored if slot % 3 else failed).append(genome)
            if slot % 3 == 0:
                results[slot] = Result(worst, (worst,), failed=True)
        sampler.tell(number, results)
        assert all(within(c, genome[c.name]) for genome in generation.genomes for c in COORDINATES)
    assert sampler.recommend() not in [genome for genome in failed if genome not in scored]


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHERS)
def test_it_finds_better_points_than_it_began_with(name: str, make: Make) -> None:
    game = Game(make(name, coordinates=NUMBERS), name).play(14 if name in SHORT else 20)
    assert max(map(max, game.values[-3:])) > max(game.values[0])
    assert max(map(max, game.values)) > -0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHERS)
def test_it_finds_better_points_with_generations_outstanding(name: str, make: Make) -> None:
    game = Game(make(name, coordinates=NUMBERS), name).play(8 if name in SHORT else 20, outstanding=2)
    assert max(map(max, game.values)) > max(game.values[0]) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL_OBJECTIVES)
def test_of_several_objectives_it_improves_each_and_the_front(name: str, make: Make) -> None:
    game = Game(make(name, objectives=2), name, objectives=2).play(length(name, 10), outstanding=1)
    results = [[result.objectives for result in results] for _, results in sorted(game.results.items())]
    first, every = results[0], [row for rows in results for row in rows]
    assert max(row[0] for row in every) > max(row[0] for row in first)
    assert max(row[1] for row in every) > max(row[1] for row in first)
    assert hypervolume(every) > 1.2 * hypervolume(first)
    replayed = Game(make(name, objectives=2), name, objectives=2).play(length(name, 10), outstanding=1)
    assert replayed.genomes == game.genomes


def hypervolume(rows: Sequence[tuple[float, ...]], reference: tuple[float, float] = (-6.0, -4.0)) -> float:
    """The area between a reference point and the rows that no other dominates."""
    area, height = 0.0, reference[1]
    for first, second in sorted(rows, reverse=True):
        area += max(first - reference[0], 0.0) * max(second - height, 0.0)
        height = max(height, second)
    return area


def test_draws_are_keyed_by_seed_and_counters() -> None:
    draws = [generator(*key).random() for key in ((0, 1, 2), (0, 1, 2), (1, 1, 2), (0, 2, 1), (0, 1))]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 4
