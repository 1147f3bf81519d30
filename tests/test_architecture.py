"""A module imports from lower ranks only, and each heavy library has one home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "evomerge"

# README.md has the same picture. Modules of one rank do not import each other; a folder's `__init__` is its
# contract and may be imported by its files.
RANKS = {
    "errors": 1,
    "plugins": 2,
    "catalog": 2,
    "long_context": 2,
    "tensors": 3,
    "masks": 3,
    "rope": 3,
    "tables": 3,
    "recipe": 4,
    "loading": 4,
    "kernels": 4,
    "genes": 5,
    "mutation": 6,
    "space": 7,
    "checkpoints": 5,
    "adapters": 5,
    "vocabulary": 5,
    "methods": 5,
    "training": 5,
    "operators": 6,
    "scoring": 5,
    "inputs": 6,
    "mergekit_yaml": 6,
    "statistics": 6,
    "residency": 6,
    "gradients": 6,
    "samplers": 6,
    "fitness": 6,
    "merger": 7,
    "racing": 7,
    "candidate": 8,
    "config": 8,
    "search": 8,
    "workers": 9,
    "records": 9,
    "warm": 9,
    "elites": 10,
    "study": 11,
    "pareto": 10,
    "advice": 10,
    "certify": 12,
    "report": 13,
    "export": 13,
    "scorecard": 13,
    "demo": 14,
    "single": 14,
    "promotion": 14,
    "cli": 15,
}

HOMES = {
    "ray": {"workers"},
    "lm_eval": {"scoring"},
    "optuna": {"records", "samplers", "report"},
    "cma": {"samplers"},
    "cmaes": {"samplers"},
    "optunahub": {"samplers"},
    "typer": {"cli"},
}


def _rank_name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_module_has_a_rank() -> None:
    assert {_rank_name(path) for path in FILES} == set(RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = _rank_name(path)
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "evomerge" or len(parts) == 1 or parts[1] == "__version__":
            continue
        inside_own_folder = parts[1] == own and (PACKAGE / own).is_dir()
        assert inside_own_folder or RANKS[parts[1]] < RANKS[own], f"{path.name} ({own}) imports {name}"


@pytest.mark.parametrize("library", sorted(HOMES))
def test_each_library_has_one_home(library: str) -> None:
    users = {_rank_name(path) for path in FILES for name in _imports(path) if name.split(".")[0] == library}
    assert users <= HOMES[library]
    assert users, f"nothing uses {library}: take it off the list"


def test_the_readme_shows_these_ranks() -> None:
    text = (PACKAGE.parent / "README.md").read_text()
    for module, rank in RANKS.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| {rank} |")), "")
        assert f"`{module}`" in row, f"README.md's table lacks {module} in rank {rank}"


def test_help_answers_without_heavy_imports() -> None:
    top = ast.parse((PACKAGE / "cli.py").read_text()).body
    heavy = {"torch", "transformers", "ray", "optuna", "lm_eval"}
    direct = {
        name.split(".")[0]
        for node in top
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert not direct & heavy
