"""An experiment's operators: read, checked, and their options searched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from evomerge.errors import ConfigError
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.tasks import document_texts
from evomerge.searching.spaces import operator_genes
from evomerge.searching.spaces.genes import Coordinate, initial
from evomerge.searching.spaces.operator_genes import Operator, When
from evomerge.studies import experiment
from evomerge.studies.plan import Plan, check_training, make_plan

Write = Callable[..., Path]
YARN = {
    "context_extension": {"method": "yarn", "factor": 4.0, "beta_fast": {"low": 1.5, "high": 64, "scale": "log"}}
}


def read(value: Any) -> Operator:
    return Operator.model_validate(value)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "abcabcabcd"}\n' * 4)
    return path


def healing(texts: Path, **options: Any) -> dict[str, Any]:
    return {
        "distillation": {"data": {"x": str(texts)}, "teachers": {"x": "ant"}, "steps": 2, "length": 16, **options}
    }


def test_a_searched_option_is_a_coordinate() -> None:
    operator = read(YARN)
    assert operator.coordinates() == [Coordinate("context_extension.beta_fast", 1.5, 64, 32.0, True)]
    assert operator.step({"context_extension.beta_fast": 8.0}).options["beta_fast"] == 8.0
    assert operator.step().options["beta_fast"] == 32.0, "starts at the operator's own default"


def test_where_a_searched_option_starts() -> None:
    def start(**gene: Any) -> Any:
        return read({"context_extension": {"factor": 4.0, "beta_fast": gene}}).coordinates()[0].init

    assert start(low=2.0, high=40.0, init=5.0) == 5.0
    assert start(low=2.0, high=8.0) == 5.0, "the default lies outside"
    assert start(low=2.0, high=8.0, scale="log") == pytest.approx(4.0)
    assert start(low=2.0, high=8.0, step=2.0) in (4.0, 6.0)


def test_options_in_lists_and_choices_are_searched_too() -> None:
    knots = [{"low": 0.0, "high": 1.0, "init": 0.25}, 0.75]
    (point,) = read({"context_extension": {"method": "longrope", "factor": 2.0, "knots": knots}}).coordinates()
    assert point.name == "context_extension.knots.0"
    operator = read({"context_extension": {"method": {"choose": ["yarn", "ntk"]}, "factor": 2.0}})
    (point,) = operator.coordinates()
    assert (point.choices, point.init) == (("yarn", "ntk"), "yarn")
    assert operator.step({point.name: "ntk"}).options["method"] == "ntk"
    assert [step.options["method"] for step in operator.extremes()] == ["yarn", "yarn", "ntk"]


def test_it_comes_back_as_it_was_dumped(texts: Path) -> None:
    for value in (YARN, healing(texts), {"distillation": {**healing(texts)["distillation"], "when": {"top": 0.5}}}):
        operator = read(value)
        assert read(operator.model_dump(mode="json", exclude_none=True)) == operator
    assert operator.when == When(top=0.5)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("distil", "unknown operator 'distil'. Did you mean 'distillation'"),
        ({"context_extension": {"factor": 2.0, "when": {"top": 0.5}}}, "context_extension.when: .*every candidate"),
        ({"context_extension": {"factor": {"low": 0.5, "high": 2.0}}}, "context_extension.factor: .*greater"),
        (
            {"context_extension": {"factor": {"low": 1.0, "high": 2.0, "per": ["layer"]}}},
            "factor.per: .*whole model",
        ),
        ({"context_extension": {"factor": {"low": 2, "high": 1}}}, "factor: low must be below high"),
        ({"context_extension": {"beta": 2.0, "factor": 2.0}}, "context_extension.beta: is no key here"),
        ({"context_extension": [1]}, "must be a mapping of the operator's options"),
        ({"distillation": {"data": {}, "lr": {"low": 1e-5, "high": 1e-3}}}, "lr: what trains is not searched"),
    ],
)
def test_faults_name_operator_and_option(value: Any, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        read(value)


def test_a_gene_of_an_operator_is_one_of_the_space(write_experiment: Write) -> None:
    plan = make_plan(experiment.load_experiment(write_experiment(operators=[YARN])))
    assert plan.coordinates[-1].name == "context_extension.beta_fast"
    assert plan.longest == 256, "the scorer keeps prompts of what candidates are extended to"
    genome = {**initial(plan.coordinates), "context_extension.beta_fast": 3.0}
    recipe = plan.laid.decode(genome)
    assert [step.options["beta_fast"] for step in recipe.operators] == [3.0]
    again = plan.laid.decode({**genome, "context_extension.beta_fast": 4.0})
    assert recipe.sha256 != again.sha256


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"operators": [YARN, YARN]}, "operators.context_extension: is there twice"),
        ({"operators": [YARN], "sampler": "gradient"}, "gradients do not pass through operators"),
        (
            {"operators": [YARN], "sampler": {"name": "cma", "gradient": 3}},
            "gradients do not pass through operators",
        ),
        (
            {"operators": ["TEXTS"], "fitness": "PARETO", "sampler": "nsga2"},
            "with fitness.objective pareto no candidate is",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    write_experiment: Write, family: Path, texts: Path, changes: dict[str, Any], fault: str
) -> None:
    if changes["operators"] == ["TEXTS"]:
        changes = {**changes, "operators": [healing(texts)]}
    if changes.get("fitness"):
        data = yaml.safe_load(write_experiment().read_text())["fitness"]
        changes = {**changes, "fitness": {**data, "objective": "pareto"}}
    with pytest.raises(ConfigError, match=fault):
        experiment.load_experiment(write_experiment(**changes))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"teachers": {"x": "aunt"}}, "distillation.teachers: there is no model 'aunt'. Did you mean 'ant'"),
        ({"length": 100}, "distillation.length: is more than the 64 tokens"),
    ],
)
def test_what_does_not_fit_the_models_is_refused_before_any_worker(
    write_experiment: Write, texts: Path, options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        check_training(
            make_plan(experiment.load_experiment(write_experiment(operators=[healing(texts, **options)])))
        )


# --- files that are trained on ---


def test_files_are_found_beside_the_experiment_and_hashed(write_experiment: Write, texts: Path) -> None:
    loaded = experiment.load_experiment(write_experiment(operators=[healing(Path("texts.jsonl"))]))
    digest = hashlib.sha256(texts.read_bytes()).hexdigest()
    assert loaded.operators[0].options["data"] == {"x": {"path": str(texts), "sha256": digest}}


def test_a_missing_or_changed_file_is_refused(write_experiment: Write, texts: Path) -> None:
    with pytest.raises(ConfigError, match=r"operators.distillation.data.x: there is no file .*lost\.jsonl"):
        experiment.load_experiment(write_experiment(operators=[healing(Path("lost.jsonl"))]))
    data = {"x": {"path": str(texts), "sha256": "0" * 64}}
    plan = make_plan(experiment.load_experiment(write_experiment(operators=[healing(texts, data=data)])))
    with pytest.raises(ConfigError, match=r"distillation\.data\.x: .* has changed since the study began"):
        check_training(plan)


def test_texts_count_by_content_and_not_by_path(write_experiment: Write, texts: Path, tmp_path: Path) -> None:
    def recipe(path: Path) -> Recipe:
        plan = make_plan(experiment.load_experiment(write_experiment(operators=[healing(path)])))
        merged = plan.laid.decode(initial(plan.coordinates))
        return merged.model_copy(update={"operators": (plan.training[0].step(),)})

    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved/texts.jsonl"
    moved.write_bytes(texts.read_bytes())
    assert recipe(texts).sha256 == recipe(moved).sha256
    moved.write_text('{"text": "abcabcabce"}\n')
    assert recipe(texts).sha256 != recipe(moved).sha256


def test_training_on_what_is_scored_is_refused(write_experiment: Write, family: Path, tmp_path: Path) -> None:
    plan = make_plan(experiment.load_experiment(write_experiment()))
    text = texts_of(plan, "first_test")[0]
    path = tmp_path / "leak.jsonl"
    path.write_text('{"text": "abcabcabcd"}\n{"text": "' + f"j j {text} j" + '"}\n')
    plan = make_plan(experiment.load_experiment(write_experiment(operators=[healing(path)])))
    with pytest.raises(ConfigError, match=r"distillation\.data\.x: .*first_test"):
        check_training(plan)


def texts_of(plan: Plan, task: str) -> list[str]:
    fitness = plan.experiment.fitness
    return document_texts(fitness.specs(fitness.holdout), Path(fitness.include or ""))[task]


def test_an_operator_that_does_not_train_has_no_files_to_find(tmp_path: Path) -> None:
    operator = read(YARN)
    assert operator_genes.located(operator, tmp_path) == (operator, [])
