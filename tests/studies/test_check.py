"""`evomerge check` finds what would stop the first candidate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.studies.check import check_tasks
from evomerge.studies.experiment import load_experiment
from evomerge.studies.plan import make_plan
from evomerge.studies.study import search
from tests.helpers.inputs import FIRST, change_config, save_model
from tests.helpers.studies import Silent, begin


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    """Models whose tokenizer has the letter j beyond their embedding."""
    tokens = [*FIRST, *"abcdefghi", "z", "j"]
    made = {name: save_model(tmp_path / name, tokens, 14, tied=True, seed=1) for name in ("base", "ant")}
    return {name: str(folder) for name, folder in made.items()}


def test_a_document_with_a_token_that_the_model_has_no_row_for_is_told_by_check_and_run(
    models: dict[str, str], write_experiment: Callable[..., Path]
) -> None:
    path = write_experiment(base=models["base"], experts={"ant": models["ant"]})
    with pytest.raises(ConfigError, match=r"^first: document \d+: its text holds the token 'j' \(id 14\), but the"):
        check_tasks(make_plan(load_experiment(path)))
    observer = Silent()
    with pytest.raises(ConfigError, match=r"^first: document \d+: its text holds the token 'j'"):
        search(begin(path), observer)
    assert observer.seen == []


def test_a_row_that_experts_give_a_token_counts(
    models: dict[str, str], tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    bee = save_model(tmp_path / "bee", [*FIRST, *"abcdefghijy"], 15, tied=True, seed=2)
    path = write_experiment(base=models["base"], experts={"bee": str(bee)}, vocabulary="union")
    documents, _ = check_tasks(make_plan(load_experiment(path)))
    assert documents == {"first": 24, "second": 24, "first_test": 24}


def test_what_an_expert_computes_otherwise_is_among_the_plans_notes(
    models: dict[str, str], write_experiment: Callable[..., Path]
) -> None:
    change_config(Path(models["ant"]), rms_norm_eps=1e-5)
    plan = make_plan(load_experiment(write_experiment(base=models["base"], experts={"ant": models["ant"]})))
    (note,) = plan.survey.notes
    assert "rms_norm_eps 1e-05 (the base 1e-06); the merged model computes with the base's" in note
