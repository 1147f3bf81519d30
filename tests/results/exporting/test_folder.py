"""The exported model is the scored model, bit for bit; and stock tools read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import CheckpointError, ConfigError, StudyError
from evomerge.models.live_weights import weights_sha256
from evomerge.results import certificate
from evomerge.results.exporting.folder import export_recipe, export_trial
from evomerge.searching.spaces import genes
from evomerge.studies import experiment, study
from evomerge.studies.candidates import score_model
from evomerge.studies.plan import Plan, make_plan
from evomerge.studies.trials import Trial, best_trial
from tests.helpers.family import experiment_mapping
from tests.helpers.studies import Silent, begin


def silent(text: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def finished(
    request: pytest.FixtureRequest, family: Path, bf16_family: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, list[Trial]]:
    """A finished study, in both dtypes."""
    folder = tmp_path_factory.mktemp(f"finished-{request.param}")
    models = family if request.param == "float32" else bf16_family
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment_mapping(models, folder / "study", budget={"candidates": 8})))
    plan = begin(path)
    return plan, study.search(plan, Silent())


@pytest.fixture(scope="module")
def exported(finished: tuple[Plan, list[Trial]]) -> tuple[Path, Trial]:
    plan, trials = finished
    trial = trials[-1]  # a searched one, with other values in each group of layers
    return export_trial(plan, trial, plan.folder.parent / "merged", silent), trial


@pytest.mark.slow
def test_the_exported_weights_are_the_scored_ones(exported: tuple[Path, Trial]) -> None:
    folder, trial = exported
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert weights_sha256(model) == trial.weights_sha256


@pytest.mark.slow
def test_scoring_the_folder_gives_the_trials_scores_exactly(
    exported: tuple[Path, Trial], finished: tuple[Plan, list[Trial]]
) -> None:
    folder, trial = exported
    fitness = finished[0].experiment.fitness
    found = score_model.score_model(str(folder), fitness, fitness.search, dtype="auto", threads=1)
    assert found["tasks"] == trial.tasks
    assert found["climbed"] == trial.climbed
    assert found["fitness"] == trial.value
    assert found["weights_sha256"] == trial.weights_sha256


@pytest.mark.slow
def test_stock_lm_eval_gives_the_same_accuracies(
    exported: tuple[Path, Trial], finished: tuple[Plan, list[Trial]], family: Path
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder, trial = exported
    if finished[0].survey.dtype != "float32":
        pytest.skip("lm-eval scores bfloat16 models with bfloat16 logits; parity holds in float32")
    model = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8)
    results = lm_eval.simple_evaluate(
        model=model, tasks=list(trial.tasks), task_manager=TaskManager(include_path=str(family / "tasks"))
    )
    assert {task: results["results"][task]["acc,none"] for task in trial.tasks} == trial.tasks


def test_the_folder_is_complete(exported: tuple[Path, Trial]) -> None:
    folder, trial = exported
    assert AutoTokenizer.from_pretrained(folder)("abc").input_ids == [4, 5, 6]
    about = json.loads((folder / "evomerge.json").read_text())
    assert about["weights_sha256"] == trial.weights_sha256
    assert about["recipe"] == trial.recipe
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert trial.recipe in card
    assert str(folder.parent) not in card, "the card tells where on this machine the models lay"
    mergekit = yaml.safe_load((folder / "mergekit.yaml").read_text())
    assert mergekit["merge_method"] == "dare_ties"
    assert [part["sources"][0]["layer_range"] for part in mergekit["slices"]] == [[0, 2], [2, 4]]
    assert not list(folder.parent.glob(".merged*")), "nothing is left aside"


def test_the_recipe_alone_builds_the_same_bits(exported: tuple[Path, Trial], tmp_path: Path) -> None:
    folder, trial = exported
    again = export_recipe(folder / "recipe.yaml", tmp_path / "again", silent)
    assert json.loads((again / "evomerge.json").read_text())["weights_sha256"] == trial.weights_sha256
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_short_recipe_builds_without_a_search(family: Path, tmp_path: Path) -> None:
    recipe = {
        "method": "slerp",
        "base": str(family / "models/base"),
        "experts": {"ant": str(family / "models/ant")},
        "parameters": {"t": 1.0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    built = export_recipe(tmp_path / "recipe.yaml", tmp_path / "out", silent)
    ours, ant = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (built, family / "models/ant")
    )
    for mine, theirs in zip(ours.parameters(), ant.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_recipe_whose_checkpoint_changed_is_refused(exported: tuple[Path, Trial], tmp_path: Path) -> None:
    data = yaml.safe_load((exported[0] / "recipe.yaml").read_text())
    data["experts"]["ant"]["model"] = data["experts"]["bee"]["model"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(CheckpointError, match=r"experts\.ant: .* does not hold the weights"):
        export_recipe(tmp_path / "recipe.yaml", tmp_path / "out", silent)


def test_a_recipe_without_experts_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: linear\nbase: x\n")
    with pytest.raises(ConfigError, match="experts: is missing"):
        export_recipe(tmp_path / "recipe.yaml", tmp_path / "out", silent)


def test_an_existing_folder_is_not_overwritten(finished: tuple[Plan, list[Trial]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StudyError, match="exists already"):
        export_trial(finished[0], finished[1][0], tmp_path, silent)


def test_a_model_that_is_not_the_scored_one_is_refused(finished: tuple[Plan, list[Trial]], tmp_path: Path) -> None:
    from dataclasses import replace

    wrong = replace(finished[1][0], weights_sha256="0" * 64)
    with pytest.raises(StudyError, match="is not the one that was scored"):
        export_trial(finished[0], wrong, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_certificate_scores_parents_as_they_are(finished: tuple[Plan, list[Trial]], tmp_path: Path) -> None:
    plan, trials = finished
    trial = best_trial(trials)
    assert trial is not None
    winner = plan.laid.decode(trial.genome)
    found = certificate.certify_winner(plan, winner)
    assert [row.name for row in found.rows] == ["base", "expert ant", "expert bee", "uniform average", "winner"]
    fitness = plan.experiment.fitness
    for row, source in (("base", plan.survey.base), ("expert ant", plan.survey.experts["ant"])):
        alone = score_model.score_model(source.model, fitness, fitness.holdout, dtype="auto", threads=1)
        assert next(r for r in found.rows if r.name == row).tasks == alone["tasks"]
    card = export_trial(plan, trial, tmp_path / "certified", silent) / "README.md"
    assert found.verdict in card.read_text()


def test_a_fitness_without_holdout_cannot_certify(write_experiment: Callable[..., Path], family: Path) -> None:
    fitness: dict[str, Any] = {"include": str(family / "tasks"), "search": [{"task": "first"}]}
    plan = make_plan(experiment.load_experiment(write_experiment(fitness=fitness)))
    winner = plan.laid.decode(genes.initial(plan.coordinates))
    with pytest.raises(ConfigError, match="holdout: lists no task"):
        certificate.certify_winner(plan, winner)
