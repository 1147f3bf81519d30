"""What README and docs/ say holds: commands exist, YAML loads, Python runs, links lead somewhere, all is named."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command
from typer.testing import CliRunner

from evomerge import plugins
from evomerge.cli.main import app
from evomerge.files import shipped
from evomerge.recipes import mergekit_yaml
from evomerge.recipes.files import read_recipe_file
from evomerge.recipes.mergekit_yaml.stages import stages
from evomerge.scoring.fitness import Entry, Fitness
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.tasks import build_tasks
from evomerge.searching.documents import Fidelity
from evomerge.searching.spaces.genes import Gene, SourceGene, Switch
from evomerge.searching.spaces.operator_genes import Operator
from evomerge.searching.spaces.space import SearchSpace
from evomerge.studies.experiment import Budget, Experiment, load_experiment, read_fitness, read_space
from evomerge.studies.workers.resources import Workers
from tests.helpers.pages import DOCS, EXPERIMENTS, MANUAL, ROOT, Block, anchors, blocks, manual

# --- commands ----------------------------------------------------------------------------------------------

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
LINES = [
    line.split("#")[0].strip()
    for block in blocks("bash")
    for whole in block.text.splitlines()
    for line in whole.split(";")
]


@pytest.mark.parametrize("line", sorted({line for line in LINES if line}))
def test_every_command_exists(line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] in ("source", "cd"):
        assert words[1] in (".venv/bin/activate", "evomerge-demo")
        return
    assert words[0] == "evomerge"
    assert CliRunner().invoke(app, [words[1], "--help"]).exit_code == 0
    options = [word for word in words if word.startswith("--")]
    shown = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"}).output
    assert all(option in shown for option in options)
    assert COMMANDS[words[1]].make_context(words[1], words[2:])  # which refuses what the command does not take


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_named_with_its_options(name: str) -> None:
    text = manual()
    assert f"evomerge {name}" in text
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts if option[:2] == "--"}
    unnamed = {option for option in options - {"--help"} if option not in text}
    assert not unnamed


# --- YAML --------------------------------------------------------------------------------------------------

FILLED_IN: dict[str, Any] = {
    "base": "models/base",
    "experts": {"maths": "models/maths", "code": "models/code"},
    "space": "dare_ties_by_layer",
    "fitness": "my_fitness.yaml",
    "budget": {"candidates": 100},
    "study": "studies/one",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the files of the examples name, beside them."""
    (tmp_path / "tasks").mkdir()
    fitness = next(block.text for block in blocks("yaml", (DOCS / "fitness.md",)) if "search:" in block.text)
    (tmp_path / "my_fitness.yaml").write_text(fitness)
    for name in ("maths", "code"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    return tmp_path


def load_experiment_block(folder: Path, data: dict[str, Any]) -> Experiment:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**FILLED_IN, **data}))
    return load_experiment(path)


def load_recipe_block(folder: Path, data: dict[str, Any]) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return read_recipe_file(path, layers=4, dtype="float32")


def load_task_block(folder: Path, text: str) -> Any:
    """The page's own task, with the function and the line of documents that stand beside it on the page."""
    page = DOCS / "fitness.md"
    (code,) = blocks("python", (page,))
    (line,) = re.findall(r'`(\{"prompt".*?\})`', page.read_text())
    (folder / "tasks/my_sort.yaml").write_text(text)
    (folder / "tasks/my_tasks.py").write_text(code.text)
    (folder / "tasks/sort.jsonl").write_text(line + "\n")
    return build_tasks([TaskSpec("my_sort")], folder / "tasks", None)[1]["my_sort"].documents


def loaded(block: Block, folder: Path) -> Any:
    """What the real models make of a block: an experiment or a part of one, a space, a fitness, a recipe, a task or
    mergekit's configuration."""
    if "output_type:" in block.text:
        return load_task_block(folder, block.text)
    data, *more = yaml.safe_load_all(block.text)
    if more:
        return stages(str(block), [data, *more])
    keys = set(data)
    if "merge_method" in keys:
        return mergekit_yaml.read(str(block), data)
    if "genes" in keys:
        return read_space(data, folder, str(block))
    if "search" in keys:
        return read_fitness(data, folder, str(block))
    if "method" in keys:
        return load_recipe_block(folder, data)
    assert keys <= set(Experiment.model_fields), f"{block}: is part of no file that is known"
    return load_experiment_block(folder, data)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_every_yaml_block_loads(block: Block, folder: Path) -> None:
    assert loaded(block, folder)


def test_there_is_a_block_of_every_kind_of_file(folder: Path) -> None:
    kinds = {type(loaded(block, folder)) for block in blocks("yaml")}
    assert {Experiment, SearchSpace, Fitness, mergekit_yaml.Config, tuple, list} <= kinds
    assert len(kinds) == 7  # a recipe, too


def test_the_experiment_file_shows_every_key(folder: Path) -> None:
    (whole,) = (block for block in blocks("yaml", (DOCS / "experiment.md",)))
    assert set(yaml.safe_load(whole.text)) == set(Experiment.model_fields)


def test_the_operators_are_of_both_kinds() -> None:
    (block,) = blocks("yaml", (DOCS / "operators.md",))
    operators = yaml.safe_load(block.text)["operators"]
    assert [Operator.model_validate(one).training for one in operators] == [False, True]


# --- Python ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_study_of_the_python_page_runs(
    write_experiment: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, trials, _ = blocks("python", (DOCS / "python.md",))
    monkeypatch.chdir(tmp_path)
    write_experiment(study="studies/quickstart")
    names: dict[str, Any] = {}
    exec(study.text, names)
    assert len(names["trials"]) > 1
    exec(trials.text, names)
    assert len(names["rows"]) == len(names["trials"])


def test_the_maximum_of_the_python_page_is_found() -> None:
    *_, alone = blocks("python", (DOCS / "python.md",))
    names: dict[str, Any] = {}
    exec(alone.text, names)
    assert all(abs(float(x) - 0.3) < 0.2 for x in names["found"].best.values())


def test_all_python_stands_where_it_is_run() -> None:
    assert {block.page.name for block in blocks("python")} == {"python.md", "fitness.md"}


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_plugin_is_named(kind: str) -> None:
    text = manual()
    assert plugins.names(kind)
    assert [name for name in plugins.names(kind) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("kind", shipped.KINDS)
def test_everything_that_ships_is_named(kind: str) -> None:
    text = manual()
    assert [name for name in shipped.names(kind) if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("page", "model"),
    [
        ("experiment", Budget),
        ("search-space", Gene),
        ("search-space", Switch),
        ("search-space", SourceGene),
        ("fitness", Fitness),
        ("fitness", Entry),
        ("workers", Workers),
    ],
)
def test_every_key_is_explained_on_its_page(page: str, model: type[BaseModel]) -> None:
    text = (DOCS / f"{page}.md").read_text()
    assert [name for name in model.model_fields if not re.search(rf"`{name}\b", text)] == []


def test_what_is_said_of_fidelity_are_its_keys() -> None:
    (block,) = blocks("yaml", (DOCS / "documents.md",))
    assert set(yaml.safe_load(block.text)["fidelity"]) <= set(Fidelity.model_fields)


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    part = re.split(r"^#+ ", (DOCS / f"{page}.md").read_text(), flags=re.MULTILINE)
    (text,) = (one for one in part if one.startswith(heading + "\n"))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|--")]


def test_every_sampler_is_told_with_its_options() -> None:
    told = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows("samplers", "Options")[1:]}
    there = {name: set(plugins.load("samplers", name).Options.model_fields) for name in plugins.names("samplers")}
    assert told == there


def test_samplers_are_told_with_the_documents_and_objectives_that_they_take() -> None:
    told: dict[str, bool] = {}
    for names, _, documents in rows("samplers", "Samplers: how candidates are proposed")[1:]:
        told |= dict.fromkeys(re.findall(r"`(\w+)`", names), documents == "few, fresh")
    modules = {name: plugins.load("samplers", name) for name in plugins.names("samplers")}
    assert told == {name: module.FRESH_DOCUMENTS for name, module in modules.items()}
    (listed,) = re.findall(r"several\nobjectives \((.*?)\)", (DOCS / "samplers.md").read_text(), re.DOTALL)
    many = {name for name, module in modules.items() if module.SEVERAL_OBJECTIVES}
    assert set(re.findall(r"`(\w+)`", listed)) == many


def test_every_method_is_told_with_its_parameters_and_options() -> None:
    table = [row for row in rows("recipes", "Methods") if len(row) == 4][1:]
    told = {row[0].strip("`"): (row[1], row[2], row[3]) for row in table}
    assert set(told) == set(plugins.names("methods"))
    for name, (experts, parameters, options) in told.items():
        method = plugins.load("methods", name)
        fewest, most = method.EXPERTS
        assert experts == (str(fewest) if fewest == most else f"{fewest} or more"), name
        expected = [(one.name, "★" if one.per_expert else "") for one in method.PARAMETERS]
        assert re.findall(r"`(\w+)`(★?)", parameters) == expected, name
        switches = {key: json.loads(value) for key, value in re.findall(r"`(\w+)` (true|false)", options)}
        assert switches == method.OPTIONS, name


@pytest.mark.parametrize(
    ("operator", "heading"), [("context_extension", "Context extension"), ("distillation", "Distillation")]
)
def test_what_is_told_of_an_operator_are_its_options(operator: str, heading: str) -> None:
    fields = set(plugins.load("operators", operator).Options.model_fields)
    first = [row[0] for row in rows("operators", heading) if len(row) == 3][1:]
    told = {name for cell in first for name in re.findall(r"`(\w+)`", cell)} - {"when"}
    assert told <= fields
    assert operator == "distillation" or told == fields


# --- links -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*MANUAL, *EXPERIMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", path.read_text()):
        page = path.parent / target if target else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), f"{target}#{anchor}"


def test_the_docs_go_into_the_source_distribution() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (included,) = re.findall(r"^\[tool\.hatch\.build\.targets\.sdist\]\ninclude = (\[.*\])$", text, re.MULTILINE)
    assert "docs" in json.loads(included)
