"""Folders import in one direction, and each heavy library has one home."""

from __future__ import annotations

import ast
import functools
import graphlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "evomerge"

_GROUND = {"files", "models", "recipes"}
_ENGINE = {*_GROUND, "merging", "scoring", "searching", "operators"}

# Room -> the rooms that it may import. `evomerge.errors` and `evomerge.plugins` are everybody's. README.md has the
# same eleven rooms. What is loaded by name through `evomerge.plugins` no import shows.
ROOMS = {
    "files": set(),
    "models": {"files"},
    "recipes": {"files", "models"},
    "merging": _GROUND,
    "scoring": _GROUND,
    "searching": _GROUND,
    "operators": _GROUND,
    "studies": _ENGINE,
    "results": {*_ENGINE, "studies"},
    "demo": {*_ENGINE, "studies", "results"},
    "cli": {*_ENGINE, "studies", "results", "demo"},
}

# Inside a room: folder -> the folders of the same room that it may import.
INSIDE = {
    "models/rope": set(),
    "recipes/mergekit_yaml": {"recipes"},
    "merging/kernels": set(),
    "merging/methods": {"merging/kernels"},
    "merging": {"merging/kernels", "merging/methods"},
    "scoring/documents": set(),
    "scoring/forward": set(),
    "scoring": {"scoring/documents", "scoring/forward"},
    "searching/spaces": set(),
    "searching/samplers": {"searching/spaces"},
    "searching": {"searching/spaces", "searching/samplers"},
    "operators/training": set(),
    "operators": {"operators/training"},
    "studies/candidates": set(),
    "studies/workers": {"studies/candidates"},
    "studies": {"studies/candidates", "studies/workers"},
    "results/exporting": {"results"},
}

HOMES = {
    "ray": {"studies/workers"},
    "lm_eval": {"scoring"},
    "optuna": {"studies", "searching/samplers"},
    "cma": {"searching/samplers"},
    "cmaes": {"searching/samplers"},
    "optunahub": {"searching/samplers"},
    "typer": {"cli"},
}


@functools.cache
def _import_nodes(text: str) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of a module's text, wherever in it."""
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]


class Code:
    """The modules of a package's folder, and what each imports, wherever in it."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self.files = {self._name(path): path for path in sorted(package.rglob("*.py"))}

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.package.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def folder(self, module: str) -> str:
        """The folder that a module stands in, "" for the package itself."""
        return self.files[module].parent.relative_to(self.package).as_posix().removeprefix(".")

    def imports(self, module: str) -> Iterator[str]:
        """Full names of what a module imports: modules where they are known as such, else what holds the name."""
        for node in _import_nodes(self.files[module].read_text()):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            else:
                assert node.level == 0, f"{module}: relative import"
                assert node.module
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield full if full in self.files else node.module

    def faults(self) -> list[str]:
        """The imports that run against the tables."""
        found = []
        for module in self.files:
            own = self.folder(module)
            for name in self.imports(module):
                if name not in self.files or not own:
                    continue
                other = self.folder(name)
                if other and not _allowed(own, other):
                    found.append(f"{module} imports {name}")
        return found

    def circle(self) -> list[str]:
        """A circle of modules that import each other; [] if there is none."""
        graph = {
            module: {name for name in self.imports(module) if name in self.files and name != module}
            for module in self.files
        }
        try:
            list(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError as error:
            return list(error.args[1])
        return []


def _allowed(own: str, other: str) -> bool:
    if own == other:
        return True
    room, wanted = own.partition("/")[0], other.partition("/")[0]
    return other in INSIDE.get(own, set()) if room == wanted else wanted in ROOMS[room]


CODE = Code(PACKAGE)


def test_every_folder_has_a_place_in_the_tables() -> None:
    folders = {CODE.folder(module) for module in CODE.files} - {""}
    assert {folder.partition("/")[0] for folder in folders} == set(ROOMS)
    assert folders <= {*ROOMS, *INSIDE}


def test_only_what_is_everybodys_stands_beside_the_rooms() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "errors.py", "plugins.py"}


def test_imports_follow_the_tables() -> None:
    assert CODE.faults() == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert CODE.circle() == []


def test_the_tables_have_no_circle() -> None:
    graph = {folder: set(others) for folder, others in INSIDE.items()}
    for room, others in ROOMS.items():
        graph[room] = graph.get(room, set()) | set(others)
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("files/writing.py", "from evomerge.models import rope"),
        ("merging/merger.py", "from evomerge.scoring import tasks"),
        ("merging/kernels/passes.py", "import evomerge.merging.merger"),
        ("searching/search.py", "def later():\n    from evomerge.studies import plan"),
    ],
)
def test_a_planted_import_against_the_tables_is_found(tmp_path: Path, where: str, line: str) -> None:
    package = Path(shutil.copytree(PACKAGE, tmp_path / "evomerge", ignore=shutil.ignore_patterns("__pycache__")))
    with (package / where).open("a") as file:
        file.write(f"\n{line}\n")
    (fault,) = Code(package).faults()
    assert where.removesuffix(".py").replace("/", ".") in fault


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    package = Path(shutil.copytree(PACKAGE, tmp_path / "evomerge", ignore=shutil.ignore_patterns("__pycache__")))
    with (package / "recipes/recipe.py").open("a") as file:
        file.write("\nfrom evomerge.recipes import files\n")
    assert "evomerge.recipes.files" in Code(package).circle()


@pytest.mark.parametrize("library", sorted(HOMES))
def test_each_library_has_one_home(library: str) -> None:
    users = {
        CODE.folder(module)
        for module in CODE.files
        for name in CODE.imports(module)
        if name.partition(".")[0] == library
    }
    assert users <= HOMES[library]
    assert users, f"nothing uses {library}: take it off the list"


def test_no_test_module_imports_another() -> None:
    """What two of them need stands in tests/helpers or a conftest.py, so that either may be moved or run alone."""
    tests = Code(ROOT / "tests")
    faults = [
        f"{module} imports {name}"
        for module in tests.files
        for name in tests.imports(module)
        if name.startswith("tests.") and not name.startswith("tests.helpers.")
    ]
    assert faults == []


def test_the_readme_shows_these_rooms() -> None:
    text = (ROOT / "README.md").read_text()
    for room in ROOMS:
        assert any(line.startswith(f"| `{room}/`") for line in text.splitlines()), f"README.md lacks {room}/"
