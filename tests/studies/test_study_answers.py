"""What a study has answered is never forwarded again, and changes no bit of what follows from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.results import certificate
from evomerge.scoring import answers, engine
from evomerge.scoring.forward import packed
from evomerge.studies import folder, study, trials
from evomerge.studies.candidates.score import Score
from evomerge.studies.plan import recipe_of
from evomerge.studies.workers.inline_pool import InlinePool
from evomerge.studies.workers.jobs import Job
from tests.helpers.studies import Silent, begin, what_counts


def test_a_search_repeated_from_its_answers_forwards_nothing(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment(budget={"candidates": 8}))
    first = study.search(plan, Silent())
    assert all(trial.tokens > 0 for trial in first)
    assert {path.stem for path in (plan.folder / folder.ANSWERS).iterdir()} == {trial.recipe for trial in first}
    (plan.folder / folder.JOURNAL).unlink()
    shutil.rmtree(plan.folder / folder.DOCUMENTS)
    again = study.search(plan, Silent())
    assert what_counts(again) == what_counts(first)
    assert [trial.tokens for trial in again] == [0] * len(first)
    assert [trial.documents for trial in again] == [trial.documents for trial in first], "a budget counts them"


def test_damaged_answers_are_given_again(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment(budget={"candidates": 4}))
    first = study.search(plan, Silent())
    (plan.folder / folder.JOURNAL).unlink()
    shutil.rmtree(plan.folder / folder.DOCUMENTS)
    (plan.folder / folder.ANSWERS / f"{first[1].recipe}.npz").write_bytes(b"PK")
    again = study.search(plan, Silent())
    assert what_counts(again) == what_counts(first)
    assert [trial.tokens for trial in again] == [0, first[1].tokens, 0, 0]


def test_a_candidate_stopped_in_the_middle_goes_on_with_the_same_bits(
    write_experiment: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(packed, "_REPORT_EVERY", 0.0)
    monkeypatch.setattr(packed, "_SCORED_AT_ONCE", 1)
    monkeypatch.setattr(engine, "_batch_tokens", lambda model: 64)
    options = {"budget": {"candidates": 2}}
    whole = study.search(begin(write_experiment("whole.yaml", study=str(tmp_path / "whole"), **options)), Silent())
    plan = begin(write_experiment("parts.yaml", study=str(tmp_path / "parts"), **options))
    pool = InlinePool(plan.setup())
    passes: list[Any] = []

    def stop(*_: Any) -> None:
        passes.append(None)
        if len(passes) == 5:
            raise KeyboardInterrupt

    pool.workbench.model.base_model.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        study.Study(plan, pool, Silent()).run()
    parts = study.search(plan, Silent())
    assert what_counts(parts) == what_counts(whole)
    assert 0 < parts[0].tokens < whole[0].tokens
    assert parts[1].tokens == whole[1].tokens


def test_a_second_certificate_forwards_nothing_and_is_the_first(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment(budget={"candidates": 6}))
    winner = trials.best_trial(study.search(plan, Silent()))
    assert winner is not None
    recipe = recipe_of(plan, winner)
    assert certificate.certify_winner(plan, recipe) == certificate.certify_winner(plan, recipe)
    recipes = certificate.contestants(plan, recipe)
    pool = InlinePool(plan.setup(holdout=True))
    for outcome in pool.run([Job(key, one) for key, one in enumerate(recipes.values())]):
        assert isinstance(outcome.score, Score)
        assert outcome.score.report.tokens == 0
