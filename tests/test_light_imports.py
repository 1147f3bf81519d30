"""What reads a study or a recipe starts quickly, for it imports no library that computes."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "lm_eval", "ray")

LIGHT = (
    "evomerge.errors",
    "evomerge.plugins",
    "evomerge.files.hashing",
    "evomerge.files.schema",
    "evomerge.files.shipped",
    "evomerge.files.writing",
    "evomerge.files.yaml",
    "evomerge.models.source",
    "evomerge.models.tensor_names",
    "evomerge.operators",
    "evomerge.operators.context_extension",
    "evomerge.operators.distillation",
    "evomerge.recipes.canonical",
    "evomerge.recipes.files",
    "evomerge.recipes.mergekit_yaml",
    "evomerge.recipes.parameters",
    "evomerge.recipes.recipe",
    "evomerge.searching.spaces.operator_genes",
    "evomerge.studies.candidates.operating",
)


def imported_by(code: str) -> list[str]:
    """The heavy libraries that a fresh interpreter holds after it ran `code`."""
    code = f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_no_heavy_library(module: str) -> None:
    assert imported_by(f"import {module}") == []


def test_plugins_are_listed_with_their_summaries_without_any_heavy_library() -> None:
    lines = (
        "from evomerge import plugins",
        "[plugins.summary(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)]",
    )
    assert imported_by("\n".join(lines)) == []


def test_a_heavy_import_is_seen() -> None:
    assert imported_by("import evomerge.files.hashed_tensors") == ["torch"]
