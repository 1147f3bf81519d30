from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import ConfigError
from evomerge.files import shipped
from evomerge.studies.experiment import experiment_to_yaml, load_experiment, read_fitness
from tests.helpers.family import FITNESS, SPACE


def message(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    return str(caught.value)


def test_a_whole_file_loads_with_absolute_paths(write_experiment: Callable[..., Path]) -> None:
    experiment = load_experiment(write_experiment())
    assert Path(experiment.study).is_absolute()
    assert experiment.space.method == "dare_ties"
    assert experiment.sampler.options == {"population": 6}


def test_the_file_as_run_needs_no_other(
    write_experiment: Callable[..., Path], tmp_path: Path, family: Path
) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    (tmp_path / "fitness.yaml").write_text(yaml.safe_dump({**FITNESS, "include": str(family / "tasks")}))
    experiment = load_experiment(write_experiment(space="space.yaml", fitness="fitness.yaml"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "as_run.yaml").write_text(experiment_to_yaml(experiment))
    (tmp_path / "space.yaml").unlink()
    assert load_experiment(elsewhere / "as_run.yaml") == experiment


def test_shipped_definitions_are_found_by_name(write_experiment: Callable[..., Path]) -> None:
    experiment = load_experiment(write_experiment(space="ties_by_layer", fitness="tiny_skills"))
    assert experiment.space.method == "ties"
    assert experiment.fitness.include is not None
    assert Path(experiment.fitness.include).is_dir()


@pytest.mark.parametrize("name", shipped.names("fitness"))
def test_every_shipped_fitness_loads(name: str, tmp_path: Path) -> None:
    fitness = read_fitness(name, tmp_path, "test")
    assert fitness.search
    assert fitness.holdout


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base": None}, "base: is missing"),
        ({"bases": "x"}, "bases: is no key here"),
        ({"experts": {}}, "experts: "),
        ({"space": "dare_ties_by_layers"}, "Did you mean 'dare_ties_by_layer'"),
        ({"space": {**SPACE, "method": "dare"}}, "space: method: unknown method 'dare'"),
        ({"space": 3}, "space: must be a name, a path or a mapping"),
        ({"fitness": "tiny_skill"}, "Did you mean 'tiny_skills'"),
        ({"fitness": {**FITNESS, "include": "nowhere"}}, "fitness: include: there is no folder"),
        ({"sampler": "cmaes"}, "sampler: name: unknown sampler 'cmaes'. Did you mean 'cma'"),
        ({"sampler": {"name": "cma", "population": 2}}, "population: Input should be greater than or equal to 4"),
        ({"sampler": {"name": "cma", "popsize": 8}}, "popsize: is no key here"),
        ({"budget": {}}, "budget: give at least one of candidates, documents, hours"),
        ({"budget": {"candidates": 0}}, "budget.candidates: "),
        ({"workers": {"backend": "slurm"}}, "workers.backend: Input should be 'ray' or 'inline'"),
        ({"workers": {"count": 0}}, "workers.count"),
        ({"dtype": "int4"}, "dtype"),
        ({"seed": -1}, "seed"),
        ({"operators": ["distil"]}, "operators.0: unknown operator 'distil'"),
        ({"study": None}, "study: is missing"),
    ],
)
def test_faults_name_file_key_and_cure(
    write_experiment: Callable[..., Path], changes: dict[str, Any], expected: str
) -> None:
    path = write_experiment(**{"study": "study", **changes})
    text = message(path)
    assert expected in text
    assert all(line.startswith(str(path)) for line in text.splitlines())


def test_all_faults_of_all_files_come_at_once(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**SPACE, "modules": ["attn"], "wrong": 1}))
    text = message(write_experiment(space="space.yaml", budget={}, extra=1))
    assert str(tmp_path / "space.yaml") in text
    assert "budget: " in text
    assert "extra: is no key here" in text
    assert "wrong: is no key here" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: [", "is not valid YAML"),
        ("- a", "must hold a mapping"),
        ("seed: 1\nseed: 2", "the key 'seed' stands twice"),
    ],
)
def test_broken_yaml_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    found = message(path)
    assert expected in found
    assert "\n" not in found


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    assert "No such file" in message(tmp_path / "none.yaml")


def test_hold_out_tasks_must_not_be_searched_on(write_experiment: Callable[..., Path]) -> None:
    fitness = {**FITNESS, "include": None, "holdout": [{"task": "first"}]}
    del fitness["include"]
    assert "first is a search task as well" in message(write_experiment(fitness=fitness))
