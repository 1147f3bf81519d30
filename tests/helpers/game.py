"""A study in small: samplers by name, a fitness with a known best, and the moves of a search, to replay them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge import plugins
from evomerge.searching import samplers
from evomerge.searching.samplers import Generation, Result, Sampler
from evomerge.searching.spaces.genes import Coordinate, Genome

SAMPLERS = plugins.names("samplers")
MODULES = {name: samplers.load(name) for name in SAMPLERS}
SEVERAL_OBJECTIVES = [name for name in SAMPLERS if MODULES[name].SEVERAL_OBJECTIVES]
SEARCHERS = [name for name in SAMPLERS if MODULES[name].LEARNS]
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
