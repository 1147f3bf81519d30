"""The contract of every sampler, found by themselves."""

from __future__ import annotations

import math
import random
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from evomerge import plugins
from evomerge.errors import ConfigError
from evomerge.searching.samplers import Generation, Problem, Result, Sampler, generator
from evomerge.searching.samplers._optuna import _remembered, distribution
from evomerge.searching.spaces.genes import Coordinate, Genome, initial

SAMPLERS = plugins.names("samplers")
MODULES = {name: plugins.load("samplers", name) for name in SAMPLERS}
SEVERAL_OBJECTIVES = [name for name in SAMPLERS if MODULES[name].SEVERAL_OBJECTIVES]
SEARCHERS = [name for name in SAMPLERS if name not in {"random", "qmc"}]
# Where the defaults would make a test slow.
OPTIONS: dict[str, dict[str, Any]] = {
    "gp": {"population": 1, "startup": 2},
    "nsga2": {"population": 12},
    "nsga3": {"population": 12},
}
SHORT = {"gp"}  # a proposal of theirs takes a tenth of a second

COORDINATES = [
    Coordinate("a", 0.0, 1.5, 0.5, log=False),
    Coordinate("b", 0.01, 1.0, 0.1, log=True),
    Coordinate("c", -1.0, 1.0, 1.0, log=False),
    Coordinate("d", 0.0, 1.0, "poor", False, ("poor", "better", "best")),
    Coordinate("e", 0.2, 1.0, 0.6, False, step=0.2),
]
NUMBERS = COORDINATES[:3]
THRESHOLDS = np.linspace(-3.0, 0.0, 16)

Make = Callable[..., Sampler]
Judge = Callable[[Generation], list[Result]]


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OptunaHub registry of a few small packages."""
    folder = tmp_path_factory.mktemp("registry")
    packages = {
        "tiny": "from optuna.samplers import TPESampler\nclass Tiny(TPESampler):\n    pass\n",
        "restless": """
            from optuna.samplers import RandomSampler
            class Restless(RandomSampler):
                def __init__(self):
                    super().__init__()
        """,
        "pair": """
            from optuna.samplers import RandomSampler, TPESampler
            class One(RandomSampler):
                pass
            class Two(TPESampler):
                pass
        """,
        "needy": "import a_package_that_nobody_has\n",
    }
    for name, text in packages.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(textwrap.dedent(text))
    return folder


@pytest.fixture
def make(registry: Path) -> Make:
    """Makes a sampler by its name, with the options that it cannot do without."""
    required = {"optunahub": {"package": "tiny", "registry": registry}}

    def maker(
        name: str,
        seed: int = 0,
        coordinates: Sequence[Coordinate] = COORDINATES,
        objectives: int = 1,
        **options: Any,
    ) -> Sampler:
        if name == "optunahub":
            pytest.importorskip("optunahub")
        starts = [initial(coordinates), {**initial(coordinates), "a": 1.4}]
        choice = MODULES[name].Options.model_validate(
            {**OPTIONS.get(name, {}), **required.get(name, {}), **options}
        )
        sampler: Sampler = MODULES[name].make(Problem(coordinates, seed, starts, objectives), choice)
        return sampler

    return maker


def fitness(genome: Genome) -> float:
    """Largest, 0, at a = 1.2, b = 10^-0.5, c = -0.3, d = best."""
    a, b, c = (float(genome.get(name, best)) for name, best in (("a", 1.2), ("b", 10**-0.5), ("c", -0.3)))
    choice = COORDINATES[3].choices.index(str(genome.get("d", "best"))) - 2
    return float(-((a - 1.2) ** 2) - (math.log10(b) + 0.5) ** 2 - (c + 0.3) ** 2 + choice)


def other_fitness(genome: Genome) -> float:
    """At odds with `fitness` over c."""
    return float(-((float(genome["a"]) - 1.0) ** 2) - (float(genome["c"]) - 0.4) ** 2)


def slopes(genome: Genome) -> dict[str, float]:
    """The derivative of `fitness`."""
    found = {
        "a": -2 * (float(genome.get("a", 0)) - 1.2),
        "b": -2 * (math.log10(float(genome.get("b", 1))) + 0.5) / (float(genome.get("b", 1)) * math.log(10)),
        "c": -2 * (float(genome.get("c", 0)) + 0.3),
        "e": 0.0,
    }
    return {name: slope for name, slope in found.items() if name in genome}


def judge(
    generation: Generation, name: str, objectives: int = 1, value: Callable[[Genome], float] = fitness
) -> list[Result]:
    """What the sampler of that name is told of a generation."""
    results = []
    for genome in generation.genomes:
        values = (value(genome), other_fitness(genome))[:objectives] if objectives > 1 else (value(genome),)
        documents = 1 / (1 + np.exp(-4 * (values[0] - THRESHOLDS))) if MODULES[name].WANTS_DOCUMENT_SCORES else None
        gradient = slopes(genome) if generation.gradient else None
        results.append(Result(sum(values) / len(values), values, documents, gradient))
    return results


def within(coordinate: Coordinate, value: float | str) -> bool:
    if coordinate.choices:
        return type(value) is str and value in coordinate.choices
    if type(value) is not float or not math.isfinite(value):
        return False
    return coordinate.low <= value <= coordinate.high and value == coordinate.nearest(value)


@dataclass
class Game:
    """A study in small: what was asked, and the order in which it was asked and told."""

    sampler: Sampler
    name: str
    objectives: int = 1
    asked: dict[int, Generation] = field(default_factory=dict)
    results: dict[int, list[Result]] = field(default_factory=dict)
    moves: list[tuple[str, int]] = field(default_factory=list)

    def ask(self, number: int) -> Generation:
        self.asked[number] = self.sampler.ask(number)
        self.moves.append(("ask", number))
        return self.asked[number]

    def tell(self, number: int, value: Callable[[Genome], float] = fitness) -> None:
        self.results[number] = judge(self.asked[number], self.name, self.objectives, value)
        self.sampler.tell(number, self.results[number])
        self.moves.append(("tell", number))

    def play(self, generations: int, outstanding: int = 0, lost: Sequence[int] = ()) -> Game:
        """Asks that many generations, tells each after others were asked, and not always in their order."""
        out: list[int] = []
        for number in range(generations):
            while not self.ask(number).genomes:
                self.moves.pop()
                del self.asked[number]
                assert out or lost, "it waits, although it was told everything"
                if not out:
                    return self
                self.tell(out.pop(0))
            if number not in lost:
                out.append(number)
            if len(out) > outstanding:
                self.tell(out.pop(number % 2 - 1))
        return self

    def replay(self, sampler: Sampler, without: Sequence[int] = ()) -> Game:
        """The same moves, save those of some generations."""
        game = Game(sampler, self.name, self.objectives)
        for move, number in self.moves:
            if number in without:
                continue
            if move == "ask":
                game.ask(number)
            else:
                game.tell(number)
        return game

    @property
    def genomes(self) -> dict[int, list[Genome]]:
        return {number: list(generation.genomes) for number, generation in self.asked.items()}

    @property
    def values(self) -> list[list[float]]:
        return [[fitness(genome) for genome in generation.genomes] for generation in self.asked.values()]


def length(name: str, generations: int) -> int:
    return generations // 2 if name in SHORT else generations


def test_all_samplers_are_found() -> None:
    wanted = {"pycma", "random", "tpe", "gp", "nsga2", "nsga3", "qmc", "optunahub"}
    assert wanted <= set(SAMPLERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_its_module_says_what_it_is_and_what_it_wants(name: str) -> None:
    module = MODULES[name]
    assert 20 < len(plugins.summary("samplers", name)) <= 116
    assert all(
        type(getattr(module, flag)) is bool
        for flag in ("FRESH_DOCUMENTS", "SEVERAL_OBJECTIVES", "WANTS_DOCUMENT_SCORES")
    )
    assert issubclass(module.Options, BaseModel)
    text = module.Options.__doc__ or ""
    assert [option for option in module.Options.model_fields if f"{option}:" not in text] == []


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


def test_pycma_takes_its_population_from_the_options(make: Make) -> None:
    game = Game(make("pycma", population=9), "pycma").play(3)
    assert [len(genomes) for genomes in game.genomes.values()] == [2, 9, 9]


@pytest.mark.parametrize("name", ["cma", "pycma", "gradient"])
def test_it_begins_at_the_first_known_point_however_others_score(make: Make, name: str) -> None:
    sampler = make(name, **({} if name == "gradient" else {"sigma": 0.001}))
    first = float(sampler.ask(0).genomes[0]["a"])
    sampler.tell(0, [Result(0.0), Result(1.0)])
    assert all(abs(float(genome["a"]) - first) < 0.05 for genome in sampler.ask(1).genomes)


@pytest.mark.parametrize("sequence", ["sobol", "halton"])
def test_qmc_fills_the_space_evenly_whatever_its_generations(sequence: str, make: Make) -> None:
    parts = Game(make("qmc", population=8, sequence=sequence), "qmc").play(5).genomes
    whole = make("qmc", population=32, sequence=sequence).ask(1).genomes
    assert [genome for number in range(1, 5) for genome in parts[number]] == list(whole)
    counts = np.histogram([float(genome["a"]) for genome in whole], bins=8, range=(0.0, 1.5))[0]
    assert counts.min() >= 3
    assert counts.max() <= 5


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

    told: dict[int, tuple[float, ...]] = {number: (float(-number),) for number in range(10)}
    assert _remembered(told, 4) == [0, 1, 8, 9]
    assert _remembered({number: (float(number),) for number in range(10)}, 5) == [5, 6, 7, 8, 9]
    assert _remembered(told, None) == list(range(10))
    assert MODULES[name].Options().memory > 100


def test_a_finished_trial_holds_the_values_of_every_kind_of_coordinate() -> None:

    for coordinate in COORDINATES:
        held = distribution(coordinate)
        for unit in (0.0, 0.4, 0.7, 1.0):
            value = coordinate.from_unit(unit)
            assert held._contains(held.to_internal_repr(value))
            assert held.to_external_repr(held.to_internal_repr(value)) == value


def test_of_several_objectives_the_memory_keeps_the_front() -> None:

    rows: list[tuple[float, ...]] = [(1.0, 0.0), (0.0, 1.0), (-1.0, -1.0), (-2.0, -2.0), (-3.0, -3.0)]
    told = dict(enumerate(rows))
    assert _remembered(told, 4) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"package": "missing"}, r"'missing' cannot be loaded .*__init__\.py"),
        ({"package": "restless"}, "Restless takes no seed"),
        ({"package": "pair"}, "several samplers; name one as `sampler`: One, Two"),
        ({"package": "pair", "sampler": "Tow"}, "Did you mean 'Two'"),
        ({"package": "needy"}, "needs the Python package a_package_that_nobody_has: install it"),
        ({"package": "tiny", "arguments": {"speed": 3}}, "does not take these arguments: .*speed"),
    ],
)
def test_a_package_of_optunahub_that_cannot_serve_is_refused_in_one_line(
    options: dict[str, Any], fault: str, make: Make
) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        make("optunahub", **options)
    assert "\n" not in str(caught.value)


def test_of_a_package_with_several_samplers_one_is_chosen_and_given_its_arguments(make: Make) -> None:
    sampler = make("optunahub", package="pair", sampler="Two", arguments={"n_startup_trials": 3}, population=5)
    assert [len(genomes) for genomes in Game(sampler, "optunahub").play(3).genomes.values()] == [2, 5, 5]


def test_without_optunahub_it_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optunahub", None)
    module: ModuleType = MODULES["optunahub"]
    with pytest.raises(ConfigError, match=r"pip install 'evomerge\[optunahub\]'"):
        module.make(Problem(COORDINATES, 0, [initial(COORDINATES)]), module.Options(package="tiny"))


def test_the_network_being_away_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("optunahub")

    def away(package: str, ref: str) -> ModuleType:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(hub, "load_module", away)
    module = MODULES["optunahub"]
    with pytest.raises(ConfigError, match=r"OSError: no route to host.*network.*`registry`") as caught:
        module.make(Problem(COORDINATES, 0, [initial(COORDINATES)]), module.Options(package="tiny"))
    assert "\n" not in str(caught.value)
