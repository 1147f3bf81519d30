"""Samplers made by name, and a registry of OptunaHub packages for those that need one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evomerge.searching.samplers import Problem, Sampler
from evomerge.searching.spaces.genes import Coordinate, initial
from tests.helpers.game import COORDINATES, MODULES, OPTIONS, Make


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
