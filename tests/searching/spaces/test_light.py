"""Reading a search space and decoding a genome start quickly."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

from evomerge.searching import spaces

MODULES = [module.name for module in pkgutil.iter_modules(spaces.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_it_imports_no_library_that_computes(name: str) -> None:
    heavy = ("torch", "transformers", "lm_eval", "ray", "optuna", "scipy")
    code = f"import sys, evomerge.searching.spaces.{name}\nprint(*[one for one in {heavy} if one in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == []
