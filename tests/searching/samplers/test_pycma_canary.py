"""The parts of pycma that `samplers.pycma` uses beyond its promises: one test each, which names what went."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from evomerge.searching.samplers import pycma

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it cannot plot
    cma: Any = pytest.importorskip("cma")

VALUES = [float(rank) for rank in range(6)]


def engine(**options: Any) -> Any:
    quiet = {"verbose": -10, "verb_log": 0, "popsize": 6, "seed": 1, **pycma.NEVER_STOP}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cma.CMAEvolutionStrategy([0.5, 0.5], 0.2, {**quiet, **options})


def test_two_generations_are_told_one_after_the_other_once_the_flag_is_cleared() -> None:
    search = engine()
    first, second = search.ask(), search.ask()
    search.tell(first, VALUES)
    assert hasattr(search, "_flgtelldone"), "CMAEvolutionStrategy._flgtelldone went: mend samplers/pycma.py"
    with pytest.raises(RuntimeError, match="once per iteration"):
        search.tell(second, VALUES)
    search._flgtelldone = False
    search.tell(second, VALUES)
    assert search.countiter == 2


@pytest.mark.parametrize("name", [*pycma.NEVER_STOP, "bounds", "popsize", "randn", "seed", "verbose", "verb_log"])
def test_pycma_has_the_option(name: str) -> None:
    assert name in cma.CMAOptions(), f"pycma's option {name} went: mend samplers/pycma.py"


def test_a_flat_fitness_does_not_stop_a_search_that_is_never_to_stop() -> None:
    search = engine()
    for _ in range(100):
        search.tell(search.ask(), [1.0] * 6)
    assert not search.stop(), "pycma has a new reason to stop: add it to NEVER_STOP in samplers/pycma.py"


def test_all_chance_comes_from_the_function_given_as_randn() -> None:
    def points() -> Any:
        random = np.random.default_rng(3)
        search = engine(randn=lambda *shape: random.standard_normal(shape), seed=math.nan)
        drawn = []
        for _ in range(3):
            drawn.append(search.ask())
            search.tell(drawn[-1], VALUES)
        return np.array(drawn).tolist()

    assert points() == points(), "pycma draws from elsewhere than the option randn"


def test_the_mean_is_the_favourite() -> None:
    assert engine().result.xfavorite.tolist() == [0.5, 0.5], "result.xfavorite is no longer the mean"
