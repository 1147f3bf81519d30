"""Studies with operators: options searched, elites trained beside a control, interrupted, certified, exported."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.errors import CandidateError, ConfigError, StudyError
from evomerge.models.live_weights import weights_sha256
from evomerge.models.loading import load_model, load_tokenizer
from evomerge.results import certificate, summary, tables
from evomerge.results.exporting import next_round
from evomerge.results.exporting.folder import export_recipe, export_trial
from evomerge.studies import journal, life, second_phase, study
from evomerge.studies.candidates.score import measure
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.candidates.workbench import Workbench
from evomerge.studies.experiment import load_experiment
from evomerge.studies.folder import DELTAS, EXPERIMENT, JOURNAL
from evomerge.studies.plan import Plan, make_plan, recipe_of, trained_files
from evomerge.studies.trials import Trial, best_trial, elite_trials, ranked_trials
from evomerge.studies.workers.inline_pool import InlinePool
from tests.helpers.studies import Silent, begin, what_counts

pytestmark = pytest.mark.slow

Write = Callable[..., Path]


def silent(text: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two files of random texts, none of which holds a task's document."""
    folder, generator = tmp_path_factory.mktemp("texts"), random.Random(7)
    paths = {}
    for name in ("ant", "bee"):
        paths[name] = str(folder / f"{name}.jsonl")
        lines = (json.dumps({"text": "".join(generator.choices("abcdefghij", k=12))}) for _ in range(16))
        Path(paths[name]).write_text("\n".join(lines) + "\n")
    return paths


@pytest.fixture
def both(corpora: dict[str, str]) -> list[dict[str, Any]]:
    """Both operators: one whose options are searched, one that trains the two best."""
    betas = {"beta_fast": {"low": 1.5, "high": 64.0, "scale": "log"}, "attention_scale": {"low": 0.9, "high": 1.2}}
    teachers = {name: name for name in corpora}
    training = {"data": corpora, "teachers": teachers, "steps": 3, "length": 16, "when": {"top": 0.25, "min": 2}}
    return [
        {"context_extension": {"method": "yarn", "factor": 2.0, **betas}},
        {"distillation": {**training, "lr": 0.01}},
    ]


def lay(write: Write, operators: list[dict[str, Any]], name: str = "study", **changes: Any) -> Plan:
    changes = {"sampler": {"name": "cma", "population": 4}, "budget": {"candidates": 8}, **changes}
    folder = str(write().parent / name)
    return begin(write(f"{name}.yaml", study=folder, operators=operators, **changes))


def search(plan: Plan, stop_after: int | None = None) -> list[Trial]:
    return study.search(plan, Silent(stop_after))


def roles(trials: list[Trial]) -> list[str]:
    return [trial.role for trial in trials if not trial.searched]


WHOLE: dict[str, Any] = {"fidelity": {"batch": "all"}}
MINI: dict[str, Any] = {"fidelity": {"batch": 8, "select": 0.25}, "budget": {"candidates": 20}}


@pytest.mark.parametrize("how", [WHOLE, MINI], ids=["whole", "mini"])
def test_the_elites_are_trained_beside_the_control(write_experiment: Write, both: Any, how: dict[str, Any]) -> None:
    plan = lay(write_experiment, both, **how)
    trials = search(plan)
    second = [trial for trial in trials if not trial.searched]
    assert [trial.parent for trial in second if trial.role == "parent"] == ["base", "ant", "bee"]
    count = len([trial for trial in second if trial.role == "elite"])
    assert 1 <= count <= 2
    assert roles(trials) == ["parent"] * 3 + ["elite"] * count + ["trained"] * count + ["control"]
    assert all(trial.value is not None and trial.all_documents for trial in second), [
        trial.reason for trial in second
    ]
    parents = {trial.parent: trial.value for trial in second if trial.role == "parent"}
    assert second[-1].parent == max(parents, key=lambda name: parents[name] or 0.0)
    for trial in second:
        assert bool(trial.training_records) == (trial.role in ("trained", "control"))
    trained = [trial for trial in second if trial.role == "trained"]
    assert all(trial.training_records["distillation"]["steps"] == 3 for trial in trained)
    before = {str(trial.genome): trial for trial in second if trial.role == "elite"}
    assert all(trial.weights_sha256 != before[str(trial.genome)].weights_sha256 for trial in trained)
    best = best_trial(trials)
    assert best in trained, "what is exported is the best of those trained"
    assert all(trial.searched for trial in ranked_trials(trials)), "never ranked with what is not trained"


def test_the_elites_are_the_best_of_the_search(write_experiment: Write, both: Any) -> None:
    trials = search(lay(write_experiment, both, **WHOLE))
    values = sorted({trial.recipe: trial.value or 0.0 for trial in trials if trial.searched}.values())
    chosen = [trial.value for trial in trials if trial.role == "elite"]
    assert chosen == values[::-1][:2]


def test_the_share_of_the_elites(write_experiment: Write) -> None:
    trials = search(begin(write_experiment(budget={"candidates": 12}, fidelity={"batch": "all"})))
    count = len({trial.recipe for trial in trials})
    for top, least, wanted in (
        (1.0, 1, count),
        (0.5, 1, -(-count // 2)),
        (0.01, 1, 1),
        (0.01, 3, 3),
        (0.1, 99, count),
    ):
        assert len(elite_trials(trials, top, least)) == wanted


def counts(trials: list[Trial]) -> list[Any]:
    """What does not depend on the clock, trial by trial."""
    left = [{name: one["sha256"] for name, one in trial.training_records.items()} for trial in trials]
    more = [(trial.role, trial.parent, trial.documents) for trial in trials]
    return list(zip(what_counts(trials), more, left, strict=True))


@pytest.mark.parametrize("how", [WHOLE, MINI], ids=["whole", "mini"])
def test_an_interrupted_second_phase_goes_on_as_if_it_had_never_stopped(
    write_experiment: Write, both: Any, how: dict[str, Any]
) -> None:
    whole = search(lay(write_experiment, both, "whole", **how))
    plan = lay(write_experiment, both, "parts", **how)
    first = sum(trial.searched for trial in whole)
    for stop in (first - 2, 3, 1, 2, 1):
        with pytest.raises(KeyboardInterrupt):
            search(plan, stop)
    for ours, wanted in zip(counts(search(plan)), counts(whole), strict=True):
        assert ours == wanted
    assert counts(search(plan)) == counts(whole), "there is nothing left to do"


def test_without_what_training_left_it_is_trained_again_to_the_same(write_experiment: Write, both: Any) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    trials = search(plan)
    winner = best_trial(trials)
    assert winner is not None
    for path in (plan.folder / DELTAS).iterdir():
        path.unlink()
    pool = InlinePool(plan.setup())
    found = pool.workbench.evaluate(recipe_of(plan, winner))
    assert found.weights_sha256 == winner.weights_sha256
    assert found.value == winner.value


def test_a_larger_budget_may_choose_other_elites(write_experiment: Write, both: Any) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    search(plan)
    more = make_plan(life.reopen(plan.folder, candidates=20))
    trials = search(more)
    assert len([trial for trial in trials if trial.searched]) == 20
    values = sorted({trial.recipe: trial.value or 0.0 for trial in trials if trial.searched}.values())
    assert values[-1] in [trial.value for trial in trials if trial.role == "elite"]
    best = best_trial(trials)
    assert best is not None
    assert best.role == "trained"


def test_a_candidate_whose_training_fails_does_not_end_the_study(write_experiment: Write, both: Any) -> None:
    both[1]["distillation"] |= {"lr": 1e9, "method": "full"}
    trials = search(lay(write_experiment, both, **WHOLE))
    failed = [trial for trial in trials if trial.role in ("trained", "control")]
    assert failed
    for trial in failed:
        assert trial.value is None
        assert "training failed at step" in str(trial.reason)
    best = best_trial(trials)
    assert best is not None
    assert best.searched, "what could not be trained leaves the best of the search"


# --- what comes out ---


def test_the_exported_model_is_the_trained_and_extended_one(
    write_experiment: Write, both: Any, tmp_path: Path
) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    trials = search(plan)
    winner = best_trial(trials)
    assert winner is not None
    # Neither an export nor its recipe needs the texts again.
    for name in both[1]["distillation"]["data"].values():
        Path(name).rename(f"{name}.away")
    try:
        plan = make_plan(life.reopen(plan.folder))
        out = export_trial(plan, winner, tmp_path / "out", silent)
        again = export_recipe(out / "recipe.yaml", tmp_path / "again", silent)
        with pytest.raises(ConfigError, match=r"distillation\.data\.ant: "):
            search(plan)
    finally:
        for name in both[1]["distillation"]["data"].values():
            Path(f"{name}.away").rename(name)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert weights_sha256(loaded) == winner.weights_sha256
    written = json.loads((out / "config.json").read_text())
    assert written["max_position_embeddings"] == 128
    assert written["rope_scaling"]["rope_type"] == "yarn"
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"]
    setup = plan.setup()
    assert setup.fitness is not None
    scorer = Workbench(replace(setup, base=setup.base.model_copy(update={"model": str(out), "sha256": None})))
    assert scorer.scorer is not None
    measured = measure(scorer.objective, scorer.scorer.score(), scorer.scorer.groups)
    assert scorer.objective.of_entries(measured.climbed) == winner.value
    assert weights_sha256(AutoModelForCausalLM.from_pretrained(again)) == winner.weights_sha256
    card = (out / "README.md").read_text()
    assert "It was trained" in card
    assert str(tmp_path) not in card
    (next((out / DELTAS).iterdir())).unlink()
    with pytest.raises(Exception, match="is not there; copy it beside the recipe"):
        export_recipe(out / "recipe.yaml", tmp_path / "third", silent)


def test_the_live_model_is_as_before_after_a_candidate_with_operators(write_experiment: Write, both: Any) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    trials = search(plan)
    winner = best_trial(trials)
    plain = next(trial for trial in trials if trial.role == "parent")
    assert winner is not None
    bench = Workbench(plan.setup())
    before = bench.evaluate(recipe_of(plan, plain))
    text = bench.model.config.to_json_string()
    ids = torch.arange(1, 12)[None]
    logits = bench.model(input_ids=ids).logits
    bench.evaluate(recipe_of(plan, winner))
    after = bench.evaluate(recipe_of(plan, plain))
    assert after.weights_sha256 == before.weights_sha256 == plain.weights_sha256
    assert bench.model.config.to_json_string() == text
    assert torch.equal(bench.model(input_ids=ids).logits, logits)
    assert not any(parameter.requires_grad for parameter in bench.model.parameters())


def test_a_trained_winner_is_certified_against_itself_untrained_and_the_control(
    write_experiment: Write, both: Any
) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    trials = search(plan)
    winner = best_trial(trials)
    assert winner is not None
    found = certificate.certify_winner(plan, recipe_of(plan, winner))
    control = next(trial.parent for trial in trials if trial.role == "control")
    names = [row.name for row in found.rows]
    alike = f"{'base' if control == 'base' else f'expert {control}'} trained alike"
    assert names == ["base", "expert ant", "expert bee", "uniform average", "winner untrained", alike, "winner"]
    recipes = certificate.contestants(plan, recipe_of(plan, winner), control)
    assert len({recipe.sha256 for recipe in recipes.values()}) == len(recipes)
    before = next(t for t in trials if t.role == "elite" and t.genome == winner.genome)
    assert recipes["winner untrained"].sha256 == before.recipe
    assert found.best_parent in names[:3]


def test_status_tells_the_phases_apart(write_experiment: Write, both: Any) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    trials = search(plan)
    found = summary.summary(trials, plan.experiment, str(plan.folder))
    assert found["candidates"] == 8
    assert found["finished"] is True
    rows = found["trained"]
    assert sum(row["name"].startswith("control: ") for row in rows) == 1
    assert [row["after"] for row in rows] == sorted((row["after"] for row in rows), reverse=True)
    parent = second_phase.best_parent(trials)
    assert parent is not None
    (control,) = [row for row in rows if row["name"].startswith("control: ")]
    assert control["before"] == parent.value
    assert tables.training_table(rows).row_count == len(rows)


def test_a_log_of_other_operators_is_refused(write_experiment: Write, both: Any) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    search(plan)
    path = plan.folder / EXPERIMENT
    path.write_text(path.read_text().replace("steps: 3", "steps: 4"))
    changed = make_plan(load_experiment(path))
    with pytest.raises((StudyError, Exception), match="cannot be rebuilt"):
        search(changed)


def test_prompts_longer_than_the_base_reads_are_kept(write_experiment: Write, family: Path, both: Any) -> None:
    plan = make_plan(load_experiment(write_experiment(operators=both[:1])))
    assert plan.longest == 128
    bench = Workbench(plan.setup())
    assert bench.scorer is not None
    assert bench.scorer.max_length == 128
    alone = Workbench(Setup(**{**vars(plan.setup()), "max_length": None}))
    assert alone.scorer is not None
    assert alone.scorer.max_length == 64
    assert load_tokenizer(family / "models/base") is not None
    assert load_model(family / "models/base", "float32", "cpu").config.max_position_embeddings == 64


def test_kill_9_at_random_moments_of_the_second_phase_changes_nothing(write_experiment: Write, both: Any) -> None:
    both[1]["distillation"] |= {"steps": 8}
    whole = search(lay(write_experiment, both, "whole", **WHOLE))
    plan = lay(write_experiment, both, "killed", **WHOLE)
    logged = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                search(plan)
            finally:
                os._exit(0)
        aim = random.randint(7, len(whole) - 1)
        while _lines(plan) <= aim and not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.2))  # in the middle of a training, more often than not
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        logged.append(len(journal.read_trials(plan.folder)))
    assert logged == sorted(logged)
    assert 0 < logged[0] < len(whole), f"killed too late to mean anything: {logged}"
    assert counts(search(plan)) == counts(whole), f"killed after {logged}"


def _lines(plan: Plan) -> int:
    path = plan.folder / JOURNAL
    return path.read_bytes().count(b"\n") if path.exists() else 0


# --- the next round ---


def test_a_trained_winner_is_promoted_to_an_expert(write_experiment: Write, both: Any, tmp_path: Path) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    winner = best_trial(search(plan))
    assert winner is not None
    path = next_round.promote(plan, winner, tmp_path / "round", silent)
    found = load_experiment(path)
    assert list(found.experts) == ["ant", "bee", "promoted"]
    assert found.operators == plan.experiment.operators
    merged = json.loads((tmp_path / "round/model/config.json").read_text())
    assert merged["max_position_embeddings"] == 64, "it will be extended with the rest of its round"
    second = begin(path)
    trials = search(second)
    assert {"weight.g0.mlp.promoted"} < set(trials[0].genome)
    assert best_trial(trials) is not None
    third = next_round.promote(second, best_trial(trials) or winner, tmp_path / "third", silent)
    assert list(load_experiment(third).experts)[-1] == "promoted2"
    with pytest.raises(StudyError, match="exists already"):
        next_round.promote(plan, winner, tmp_path / "round", silent)


def test_what_was_trained_whole_after_other_operators_is_not_promoted(
    write_experiment: Write, both: Any, tmp_path: Path
) -> None:
    both[1]["distillation"] |= {"method": "full", "lr": 1e-4}
    plan = lay(write_experiment, both, **WHOLE)
    winner = best_trial(search(plan))
    assert winner is not None
    with pytest.raises(StudyError, match="these would act twice"):
        next_round.promote(plan, winner, tmp_path / "round", silent)


# --- what goes wrong, and is told ---


def test_training_that_comes_to_something_else_is_no_longer_what_was_scored(
    write_experiment: Write, both: Any, tmp_path: Path
) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    trials = search(plan)
    winner = best_trial(trials)
    assert winner is not None
    log = plan.folder / JOURNAL
    trained = winner.training_records["distillation"]["sha256"]
    log.write_text(log.read_text().replace(trained, "0" * 64))  # as if it had been trained to these weights
    shutil.rmtree(plan.folder / DELTAS)
    with pytest.raises(CandidateError, match=r"was trained again, because .* was lost"):
        certificate.certify_winner(plan, recipe_of(plan, winner))
    (changed,) = [trial for trial in journal.read_trials(plan.folder) if trial.number == winner.number]
    with pytest.raises(CandidateError, match="came to something else"):
        export_trial(plan, changed, tmp_path / "out", silent)
    names = {path.name for path in (plan.folder / DELTAS).iterdir()}
    assert set(trained_files(plan, [changed])).isdisjoint(names), "what is not the candidate's is not kept"


def test_parents_and_control_stand_on_the_same_operators(write_experiment: Write, both: Any) -> None:
    both[1]["distillation"] |= {"steps": 0}
    trials = search(lay(write_experiment, both, **WHOLE))
    (control,) = [trial for trial in trials if trial.role == "control"]
    (before,) = [trial for trial in trials if trial.role == "parent" and trial.parent == control.parent]
    assert control.value == before.value, "no steps change nothing"


def test_an_unfinished_second_phase_is_told(write_experiment: Write, both: Any) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    whole = search(plan)
    experiment = plan.experiment
    for count in range(len(whole) + 1):
        said = summary.summary(whole[:count], experiment, str(plan.folder))["warnings"] if count else []
        begun = any(not trial.searched for trial in whole[:count])
        unfinished = any("the second phase is not finished" in line for line in said)
        assert unfinished == (begun and count < len(whole)), count


def test_a_control_that_is_no_worse_is_told(write_experiment: Write, both: Any) -> None:
    plan = lay(write_experiment, both, **WHOLE)
    trials = search(plan)
    best = best_trial(trials)
    assert best is not None

    def said(value: float) -> str:
        others = [replace(t, value=value) if t.role == "control" else t for t in trials]
        return " ".join(summary.summary(others, plan.experiment, str(plan.folder))["warnings"])

    assert "is the training's, not the merge's" in said((best.value or 0.0) + 0.01)
    assert "is the training's, not the merge's" not in said((best.value or 0.0) - 0.01)


def test_the_next_round_of_matched_vocabularies_runs(write_experiment: Write, both: Any, tmp_path: Path) -> None:
    plan = lay(write_experiment, both, **WHOLE, vocabulary="union")
    winner = best_trial(search(plan))
    assert winner is not None
    path = next_round.promote(plan, winner, tmp_path / "round", silent)
    assert all(source.sha256 is None for source in load_experiment(path).experts.values())
    assert search(begin(path))
