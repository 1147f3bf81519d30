"""What the README says holds: commands exist, YAML loads, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from evomerge import plugins
from evomerge.cli.main import app
from evomerge.files import shipped
from evomerge.scoring.fitness import Fitness
from evomerge.searching.spaces.operator_genes import Operator
from evomerge.searching.spaces.space import SearchSpace

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines()])
def test_every_command_exists(line: str) -> None:
    words = line.split("#")[0].split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    assert words[0] == "evomerge"
    assert CliRunner().invoke(app, [words[1], "--help"]).exit_code == 0
    options = [word for word in words if word.startswith("--")]
    shown = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"}).output
    assert all(option in shown for option in options)


def test_the_yaml_is_valid() -> None:
    experiment, space, fitness, operators, recipe = (yaml.safe_load(block) for block in blocks("yaml"))
    assert [Operator.model_validate(one).training for one in operators["operators"]] == [False, True]
    assert SearchSpace.model_validate(space)
    del fitness["include"]
    assert Fitness.model_validate(fitness)
    assert experiment["space"] in shipped.names("search_spaces")
    assert experiment["sampler"]["name"] in plugins.names("samplers")
    assert recipe["method"] in plugins.names("methods")


@pytest.mark.slow
def test_the_python_compiles_and_its_names_exist() -> None:
    code, alone = blocks("python")
    compile(code, "README.md", "exec")

    imports = [line for line in code.splitlines() if line.startswith("from ")]
    exec("\n".join(imports), {})
    names: dict[str, Any] = {}
    exec(alone, names)
    assert all(abs(float(x) - 0.3) < 0.2 for x in names["found"].best.values())


def test_every_method_and_sampler_is_named() -> None:
    for kind in ("methods", "samplers"):
        assert all(f"`{name}`" in TEXT or name in TEXT for name in plugins.names(kind))


PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments").glob("**/*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
