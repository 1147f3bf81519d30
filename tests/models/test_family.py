"""Adapters, converted names and differing vocabularies in whole studies."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.models import overlays, survey
from evomerge.recipes.recipe import Recipe
from evomerge.results import certificate
from evomerge.results.exporting.folder import export_recipe, export_trial
from evomerge.studies import check, experiment, life, study, trials
from evomerge.studies.candidates import score_model
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.candidates.workbench import Workbench
from evomerge.studies.plan import Plan, make_plan, recipe_of
from tests.helpers.family import experiment_mapping
from tests.helpers.inputs import FIRST, live, save_model, silent, source
from tests.helpers.studies import Silent


def run(folder: Path, family: Path, **changes: Any) -> tuple[Plan, trials.Trial, Path]:
    """A search, resumed once, its best trial and its export."""
    data = experiment_mapping(family, folder / "study", budget={"candidates": 7}, **changes)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(data))
    plan = make_plan(experiment.load_experiment(folder / "experiment.yaml"))
    life.create(plan.experiment)
    study.search(plan, Silent())
    plan = make_plan(life.reopen(folder / "study", 8))
    trial = trials.best_trial(study.search(plan, Silent()))
    assert trial is not None
    return plan, trial, export_trial(plan, trial, folder / "merged", silent)


def check_export(plan: Plan, trial: trials.Trial, merged: Path, again: Path) -> None:
    """The scored model, the exported one and the one of its recipe are the same, and score the same."""
    fitness = plan.experiment.fitness
    found = score_model.score_model(str(merged), fitness, fitness.search, dtype="auto", threads=1)
    assert found["weights_sha256"] == trial.weights_sha256
    assert found["climbed"] == trial.climbed
    rebuilt = export_recipe(merged / "recipe.yaml", again, silent)
    assert json.loads((rebuilt / "evomerge.json").read_text())["weights_sha256"] == trial.weights_sha256
    assert not list(again.parent.glob(".*tables")), "temporary tables are left"


@pytest.mark.slow
def test_a_study_with_an_adapter_exports_what_it_scored(family: Path, lora: Path, tmp_path: Path) -> None:
    experts = {"lora": str(lora), "bee": str(family / "models/bee")}
    plan, trial, merged = run(tmp_path, family, experts=experts)
    check_export(plan, trial, merged, tmp_path / "again")
    assert check.check_tasks(plan) == ({"first": 24, "second": 24, "first_test": 24}, None)
    names = [row.name for row in certificate.certify_winner(plan, recipe_of(plan, trial)).rows]
    assert names == ["base", "expert bee", "expert lora", "uniform average", "winner"]


@pytest.mark.slow
def test_a_study_over_the_union_of_vocabularies_exports_what_it_scored(family: Path, tmp_path: Path) -> None:
    letters = "abcdefghij"
    base = save_model(tmp_path / "base", [*FIRST, *letters], 15, tied=True, seed=1)
    ant = save_model(tmp_path / "ant", [*FIRST, *reversed(letters), *"xy"], 16, tied=True, seed=2)
    plan, trial, merged = run(tmp_path, family, base=str(base), experts={"ant": str(ant)}, vocabulary="union")
    check_export(plan, trial, merged, tmp_path / "again")
    assert json.loads((merged / "config.json").read_text())["vocab_size"] == 16
    assert AutoTokenizer.from_pretrained(merged)("ajyx").input_ids == [4, 13, 15, 14]
    certificate.certify_winner(plan, recipe_of(plan, trial))


@pytest.mark.slow
def test_the_command_line_refuses_strangers_with_one_message_and_takes_them_with_a_policy(
    family: Path, strangers: Path
) -> None:
    experts = {name: str(strangers / name) for name in ("ant", "bee")}
    path = strangers / "experiment.yaml"
    for policy, code in ((None, 2), ("base", 0), ("union", 0), ("all", 2)):
        changes = {"base": str(strangers / "base"), "experts": experts, "vocabulary": policy}
        path.write_text(yaml.safe_dump(experiment_mapping(family, strangers / "study", **changes)))
        found = CliRunner().invoke(app, ["check", str(path)])
        assert found.exit_code == code, found.output
        assert "Traceback" not in found.output


def test_a_workbench_makes_what_is_missing_and_merges_mixtures_exactly(mixtures: Path, tmp_path: Path) -> None:
    found = survey.survey_models(source(mixtures / "base"), {"ant": source(mixtures / "ant")}, "auto")
    setup = Setup(found.base, found.experts, found.dtype, str(tmp_path / "cache"))
    bench = Workbench(pickle.loads(pickle.dumps(setup)))
    recipe = Recipe(
        method="task_arithmetic",
        base=found.base,
        experts=found.experts,
        dtype=found.dtype,
        layers=found.layers,
        parameters={"weight": 0.5},  # type: ignore[dict-item]
    )
    model = bench.build(recipe).model
    base, ant = live(mixtures / "base"), live(mixtures / "ant")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.data, base[name] + 0.5 * (ant[name] - base[name]), rtol=1e-6, atol=1e-7
        )
    assert overlays.is_overlay(tmp_path / f"cache/inputs/{found.base.sha256}-converted.safetensors", whole=True)
