"""Whoever reads a fitness file or a report waits for no heavy library."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "lm_eval", "ray", "datasets")


@pytest.mark.parametrize("module", ["evomerge.scoring", "evomerge.scoring.fitness", "evomerge.scoring.reports"])
def test_no_heavy_library_is_imported(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == []
