"""The command line: every command, every promised bad input. One clear message, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.studies import experiment, journal
from tests.helpers.family import FITNESS, SPACE, experiment_mapping

runner = CliRunner()


PARETO = {**FITNESS, "objective": "pareto", "include": None}


def call(*arguments: object) -> Any:
    return runner.invoke(app, [str(argument) for argument in arguments])


def fails(*arguments: object) -> str:
    """The message of a command that must end with exit code 2, without a traceback."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stderr.count("error: ") == 1
    text: str = result.stderr
    return text


@pytest.fixture(scope="module")
def study_folder(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, run from the command line."""
    folder = tmp_path_factory.mktemp("cli")
    mapping = experiment_mapping(family, folder / "study", budget={"candidates": 8})
    (folder / "experiment.yaml").write_text(yaml.safe_dump(mapping))
    result = call("run", folder / "experiment.yaml")
    assert result.exit_code == 0, result.output
    return folder / "study"


def test_help_is_quick_and_lists_the_commands() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "evomerge.cli.main", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("run", "resume", "status", "export", "merge", "score", "check", "ls", "cp", "demo", "certify"):
        assert re.search(rf"^\W*{command}\b", result.stdout, re.MULTILINE), command


def test_heavy_libraries_are_not_imported_for_help() -> None:
    code = "import sys, evomerge.cli; print([m for m in ('torch', 'ray', 'optuna') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_run_tells_what_to_do_next(study_folder: Path) -> None:
    result = call("status", study_folder)
    assert result.exit_code == 0
    assert "8 of 8" in result.stdout


def test_status_as_json(study_folder: Path) -> None:
    found = json.loads(call("status", study_folder, "--json", "--top", 3).stdout)
    assert found["candidates"] == 8
    assert found["finished"] is True
    assert len(found["top"]) == 3
    assert found["best"] == found["top"][0]


def test_status_of_a_study_that_was_killed_before_its_first_trial(study_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "young").mkdir()
    shutil.copy(study_folder / "experiment.yaml", tmp_path / "young")
    assert json.loads(call("status", tmp_path / "young", "--json").stdout)["candidates"] == 0


def test_resume_adds_candidates(study_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study_folder, copy)
    result = call("resume", copy, "--candidates", 10, "--json")
    assert json.loads(result.stdout)["candidates"] == 10


def test_export_score_and_certify(study_folder: Path, tmp_path: Path) -> None:
    assert call("export", study_folder, tmp_path / "merged", "--trial", 3).exit_code == 0
    scored = json.loads(
        call("score", tmp_path / "merged", "--fitness", study_folder / "experiment.yaml", "--json").stdout
    )
    trial = journal.read_trials(study_folder)[3]
    assert (scored["fitness"], scored["tasks"]) == (trial.value, trial.tasks)
    found = json.loads(call("certify", study_folder, "--json").stdout)
    assert found["documents"] == 24
    assert "hold-out documents" in found["verdict"]


def test_a_trial_is_picked_by_number_or_weights(study_folder: Path, tmp_path: Path) -> None:
    trials = journal.read_trials(study_folder)
    assert "trial 3 is in" in call("export", study_folder, tmp_path / "third", "--pick", 3).stdout
    second = max(trials, key=lambda trial: (trial.climbed["second"], trial.value))
    result = call("export", study_folder, tmp_path / "second", "--pick", "second=1")
    assert f"trial {second.number} is in" in result.stdout, result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--pick", "thrid=1"], "--pick: unknown task 'thrid'"),
        (["--pick", "kne"], "Did you mean 'knee'?"),
        (["--pick", "99"], "--pick: is 99, but the study has trials 0 to 7"),
        (["--pick", "knee", "--trial", 3], "--pick: and --trial both choose a trial"),
    ],
)
def test_a_pick_that_means_no_trial(
    study_folder: Path, tmp_path: Path, arguments: list[object], expected: str
) -> None:
    assert expected in fails("export", study_folder, tmp_path / "out", *arguments)
    assert expected in fails("certify", study_folder, *arguments)


@pytest.mark.slow
def test_a_search_for_several_objectives_has_a_front(
    write_experiment: Callable[..., Path], family: Path, tmp_path: Path
) -> None:
    fitness = {**PARETO, "include": str(family / "tasks")}
    sampler = {"name": "nsga2", "population": 4}
    path = write_experiment(fitness=fitness, sampler=sampler, budget={"candidates": 12})
    result = call("run", path)
    assert result.exit_code == 0, result.output
    assert "warning: 12 candidates are few for 14 genes" in result.stderr
    found = json.loads(call("status", path.parent / "study", "--json").stdout)
    assert found["hypervolume"] >= 0.0
    assert found["knee"] in [one["number"] for one in found["front"]]
    shown = call("status", path.parent / "study").stdout
    assert f"front {len(found['front'])} trials, hypervolume" in " ".join(shown.split())
    assert "front, as climbed" in shown
    result = call("export", path.parent / "study", tmp_path / "knee", "--pick", "knee")
    assert f"trial {found['knee']} is in" in result.stdout


def test_check_finds_nothing_wrong(study_folder: Path) -> None:
    result = call("check", study_folder.parent / "experiment.yaml", "--json")
    found = json.loads(result.stdout)
    (warning,) = found["warnings"]
    assert "8 candidates are few for 14 genes" in warning
    assert f"warning: {warning}" in result.stderr
    assert found["documents"] == {"first": 24, "second": 24, "first_test": 24}
    assert found["genes"] == 14


def test_ls_lists_all_kinds() -> None:
    found = json.loads(call("ls", "--json").stdout)
    assert {"methods", "samplers", "operators", "search_spaces", "fitness"} == set(found)
    assert "dare_ties" in found["methods"]
    assert all(about for kind in found.values() for about in kind.values())
    assert "no kind 'method'" in fails("ls", "method")


def test_cp_copies_a_definition_that_works_where_it_lands(tmp_path: Path) -> None:
    assert call("cp", "tiny_skills", tmp_path).exit_code == 0
    assert call("cp", "ties_by_layer", tmp_path / "mine.yaml").exit_code == 0
    assert (tmp_path / "mine.yaml").is_file()

    fitness = experiment.read_fitness(str(tmp_path / "tiny_skills.yaml"), tmp_path, "test")
    assert fitness.include == str(tmp_path / "tasks")
    assert "exists already" in fails("cp", "ties_by_layer", tmp_path / "mine.yaml")
    assert "Did you mean 'ties_by_layer'" in fails("cp", "ties_by_layers", tmp_path)


# --- bad input ---------------------------------------------------------------------------------------------


def test_run_on_an_existing_study_names_resume(study_folder: Path) -> None:
    assert "evomerge resume" in fails("run", study_folder.parent / "experiment.yaml")


def test_a_missing_model_folder(write_experiment: Callable[..., Path], family: Path) -> None:
    text = fails("run", write_experiment(base=str(family / "models/nothing")))
    assert "base: there is no model folder" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sede": 1}, "sede: is no key here"),
        ({"space": {**SPACE, "method": "magic"}}, "unknown method 'magic'"),
        (
            {"space": {**SPACE, "genes": {**SPACE["genes"], "density": {"low": 0.0, "high": 1.2}}}},
            "genes.density.low: must lie in (0, 1], but is 0",
        ),
        pytest.param(  # lm-eval looks through all of its own tasks
            {"fitness": {**FITNESS, "include": None}}, "fitness", marks=pytest.mark.slow
        ),
        (
            {"fitness": PARETO},
            "sampler: cma takes one objective, but fitness.objective is pareto; take one of gp, ",
        ),
        ({"fitness": {**PARETO, "search": PARETO["search"][:1]}}, "objective: pareto needs at least two search"),
    ],
)
def test_bad_keys_and_values(write_experiment: Callable[..., Path], changes: dict[str, Any], expected: str) -> None:
    path = write_experiment(**changes)
    text = fails("run", path)
    assert expected in text
    assert not (path.parent / "study").exists() or not any((path.parent / "study").glob("documents/*"))


@pytest.mark.slow
def test_an_unknown_task_and_metric(write_experiment: Callable[..., Path], family: Path) -> None:
    fitness = {"include": str(family / "tasks"), "search": [{"task": "frist"}]}
    assert "unknown task 'frist'. Did you mean 'first'" in fails("check", write_experiment(fitness=fitness))
    fitness["search"] = [{"task": "first", "metric": "f1"}]
    assert "has no metric 'f1'" in fails("check", write_experiment(fitness=fitness))


def test_a_run_that_fails_at_its_start_can_be_put_right_and_run(
    write_experiment: Callable[..., Path], family: Path
) -> None:
    tasks = family / "tasks"
    fitness = {"include": str(tasks), "search": [{"task": "first", "metric": "accuracy"}]}
    path = write_experiment(fitness=fitness, budget={"candidates": 4})
    assert "first: has no metric 'accuracy'" in fails("run", path)
    assert not (path.parent / "study").exists()
    fitness["search"] = [{"task": "first", "metric": "acc"}]
    assert call("run", write_experiment(fitness=fitness, budget={"candidates": 4})).exit_code == 0


def test_holdout_documents_among_the_search_documents(write_experiment: Callable[..., Path], family: Path) -> None:
    tasks = write_experiment().parent / "tasks"
    shutil.copytree(family / "tasks", tasks)
    (tasks / "copy.yaml").write_text((tasks / "first.yaml").read_text().replace("task: first", "task: copy"))
    fitness = {"include": str(tasks), "search": [{"task": "first"}], "holdout": [{"task": "copy"}]}
    assert "24 documents of copy are search documents" in fails("check", write_experiment(fitness=fitness))


def test_things_that_are_not_there(tmp_path: Path, study_folder: Path) -> None:
    assert "is no study" in fails("resume", tmp_path)
    assert "is no study" in fails("status", tmp_path / "nothing")
    assert "cannot be read" in fails("run", tmp_path / "none.yaml")
    assert "trials 0 to 7" in fails("export", study_folder, tmp_path / "out", "--trial", 99)
    assert "there is no model folder" in fails("score", tmp_path / "no-model", "--fitness", "tiny_skills")
    assert "no fitness 'tiny'" in fails("score", tmp_path, "--fitness", "tiny")


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_can_be_resumed(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment(budget={"candidates": 400})
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge.cli.main", "run", str(path)],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if "candidate 8/" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130, seen
    process.stderr.close()
    assert "evomerge resume" in seen
    assert "Traceback" not in seen
    done = len(journal.read_trials(path.parent / "study"))
    assert 8 <= done < 400
    assert call("resume", path.parent / "study", "--candidates", done + 2).exit_code == 0


# --- found by trying to break it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"space": {**SPACE, "fixed": {"lambda": "much"}}}, "space: parameters.lambda: must be a number"),
        ({"space": {**SPACE, "fixed": {"lambda": {"nobody": 1.0}}}}, "space: parameters.lambda.nobody"),
        ({"budget": {"hours": float("inf")}}, "budget.hours"),
        ({"workers": {"backend": "inline", "gpus": 99}}, "workers.gpus: is 99"),
    ],
)
def test_check_finds_what_run_would_stumble_over(
    write_experiment: Callable[..., Path], changes: dict[str, Any], expected: str
) -> None:
    assert expected in fails("check", write_experiment(**changes))


@pytest.mark.parametrize("name", ["mlp", "*", ""])
def test_experts_need_names_of_their_own(write_experiment: Callable[..., Path], family: Path, name: str) -> None:
    experts = {name: str(family / "models/ant"), "bee": str(family / "models/bee")}
    assert f"experts.{name}: is" in fails("check", write_experiment(experts=experts))


@pytest.mark.slow
def test_names_with_dots_and_brackets_work(write_experiment: Callable[..., Path], family: Path) -> None:
    experts = {"v1.5 [x]": str(family / "models/ant"), "5 [x]": str(family / "models/bee")}
    path = write_experiment(
        experts=experts,
        budget={"candidates": 8},
        space={"method": "task_arithmetic", "genes": {"weight": {"low": 0.0, "high": 1.5, "per": ["expert"]}}},
    )
    assert call("run", path).exit_code == 0
    result = call("certify", path.parent / "study")
    assert "expert v1.5 [x]" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("text", ["? [a, b]\n: 1", "{a: 1}: 2", "seed: 2020-13-45", "a: " + "[" * 3000])
def test_odd_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    assert "is not valid YAML" in fails("run", tmp_path / "odd.yaml")


def test_a_model_that_lacks_a_tensor_is_not_scored_with_random_weights(family: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(family / "models/ant", tmp_path / "ant")
    tensors = load_file(tmp_path / "ant/model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "ant/model.safetensors", metadata={"format": "pt"})
    text = fails("score", tmp_path / "ant", "--fitness", "tiny_skills", "--dtype", "float32")
    assert "lacks model.layers.0.mlp.up_proj.weight" in text


def test_a_merge_that_is_not_finite_is_not_written(family: Path, tmp_path: Path) -> None:
    recipe = {
        "method": "task_arithmetic",
        "base": str(family / "models/base"),
        "experts": {"ant": str(family / "models/ant")},
        "parameters": {"weight": 1e300},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "is not finite" in fails("merge", tmp_path / "recipe.yaml", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    recipe["parameters"] = {"weight": 0.5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "cannot be written" in fails("merge", tmp_path / "recipe.yaml", "/proc/nowhere/out")


def test_a_resumed_budget_is_kept(study_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(study_folder, tmp_path / "study")
    assert call("resume", tmp_path / "study", "--candidates", 9).exit_code == 0
    assert json.loads(call("status", tmp_path / "study", "--json").stdout)["budget"] == {"candidates": 9}


def test_cp_leaves_edited_tasks_alone(tmp_path: Path) -> None:
    assert call("cp", "tiny_skills", tmp_path).exit_code == 0
    assert "tasks exists already" in fails("cp", "tiny_skills", tmp_path / "other.yaml")


def test_a_damaged_certificate_does_not_stop_an_export(study_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(study_folder, tmp_path / "study")
    (tmp_path / "study/certificate.json").write_text("{")
    assert call("export", tmp_path / "study", tmp_path / "merged").exit_code == 0


def test_what_is_to_be_known_of_a_models_folder_is_said_by_every_command(family: Path, tmp_path: Path) -> None:
    models = shutil.copytree(family / "models", tmp_path / "models")
    (models / "ant/adapter_config.json").write_text("{}")
    note = f"{models / 'ant'} has adapter_config.json beside model.safetensors"
    experts = {"ant": str(models / "ant")}
    recipe = {"method": "linear", "base": str(models / "base"), "experts": experts, "parameters": {"weight": 1.0}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert f"note: experts.ant: {note}" in call("merge", tmp_path / "recipe.yaml", tmp_path / "out").stderr
    (tmp_path / "fitness.yaml").write_text(yaml.safe_dump({**FITNESS, "include": str(family / "tasks")}))
    said = call("score", models / "ant", "--fitness", tmp_path / "fitness.yaml", "--json")
    assert note in json.loads(said.stdout)["note"]
    data = experiment_mapping(family, tmp_path / "study", base=str(models / "base"), experts=experts)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(data))
    checked = call("check", tmp_path / "experiment.yaml", "--json")
    assert checked.exit_code == 0
    assert note in json.loads(checked.stdout)["warnings"][0]
    assert f"warning: experts.ant: {note}" in checked.stderr
