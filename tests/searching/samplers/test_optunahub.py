"""Packages of OptunaHub: which is taken, and what is said where one cannot serve."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.searching.samplers import Problem
from evomerge.searching.spaces.genes import initial
from tests.helpers.game import COORDINATES, MODULES, Game, Make


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
    module = MODULES["optunahub"]
    options = module.Options.model_validate({"package": "tiny"})
    with pytest.raises(ConfigError, match=r"pip install 'evomerge\[optunahub\]'"):
        module.make(Problem(COORDINATES, 0, [initial(COORDINATES)]), options)


def test_the_network_being_away_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("optunahub")

    def away(package: str, ref: str) -> ModuleType:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(hub, "load_module", away)
    module = MODULES["optunahub"]
    options = module.Options.model_validate({"package": "tiny"})
    with pytest.raises(ConfigError, match=r"OSError: no route to host.*network.*`registry`") as caught:
        module.make(Problem(COORDINATES, 0, [initial(COORDINATES)]), options)
    assert "\n" not in str(caught.value)
