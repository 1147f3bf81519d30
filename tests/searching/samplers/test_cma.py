"""CMA-ES by either package, and where a search begins."""

from __future__ import annotations

import pytest

from evomerge.searching.samplers import Result
from tests.helpers.game import Game, Make


def test_pycma_takes_its_population_from_the_options(make: Make) -> None:
    game = Game(make("pycma", population=9), "pycma").play(3)
    assert [len(genomes) for genomes in game.genomes.values()] == [2, 9, 9]


@pytest.mark.parametrize("name", ["cma", "pycma", "gradient"])
def test_it_begins_at_the_first_known_point_however_others_score(make: Make, name: str) -> None:
    sampler = make(name, **({} if name == "gradient" else {"sigma": 0.001}))
    first = float(sampler.ask(0).genomes[0]["a"])
    sampler.tell(0, [Result(0.0), Result(1.0)])
    assert all(abs(float(genome["a"]) - first) < 0.05 for genome in sampler.ask(1).genomes)
