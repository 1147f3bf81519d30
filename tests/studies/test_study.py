"""Real searches on a random family: resumed, repeated, failing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evomerge.errors import CheckpointError, EvomergeError, StudyError
from evomerge.files import writing
from evomerge.studies import folder, life, study
from evomerge.studies.experiment import load_experiment
from evomerge.studies.journal import read_trials
from evomerge.studies.plan import make_plan
from evomerge.studies.workers.inline_pool import InlinePool
from tests.helpers.family import SPACE, experiment_mapping
from tests.helpers.studies import Silent, begin, what_counts


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["cma", "random", "tpe"])
def test_an_interrupted_study_goes_on_as_if_it_had_never_stopped(
    write_experiment: Callable[..., Path], tmp_path: Path, sampler: str
) -> None:
    options = {"sampler": {"name": sampler, "population": 4}, "budget": {"candidates": 10}}
    whole = study.search(begin(write_experiment("whole.yaml", study=str(tmp_path / "whole"), **options)), Silent())
    plan = begin(write_experiment("parts.yaml", study=str(tmp_path / "parts"), **options))
    for stop in (1, 4, 2):
        with pytest.raises(KeyboardInterrupt):
            study.search(plan, Silent(stop))
    parts = study.search(plan, Silent())
    assert len(parts) == 10
    assert what_counts(parts) == what_counts(whole)


@pytest.mark.slow
def test_a_finished_study_takes_more_candidates(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    whole = study.search(begin(write_experiment("whole.yaml", study=str(tmp_path / "whole"))), Silent())
    plan = begin(write_experiment("short.yaml", study=str(tmp_path / "short"), budget={"candidates": 8}))
    assert len(study.search(plan, Silent())) == 8
    longer = make_plan(life.reopen(tmp_path / "short", 18))
    assert what_counts(study.search(longer, Silent())) == what_counts(whole)
    assert life.reopen(tmp_path / "short").budget.candidates == 18


def test_a_study_may_be_moved(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    plan = begin(write_experiment(budget={"candidates": 4}))
    study.search(plan, Silent())
    moved = tmp_path / "moved"
    plan.folder.rename(moved)
    again = make_plan(life.reopen(moved, 8))
    assert len(study.search(again, Silent())) == 8


def test_a_document_budget_ends_the_search(write_experiment: Callable[..., Path]) -> None:
    trials = study.search(begin(write_experiment(budget={"documents": 300})), Silent())
    # The generation that reaches the limit is the last, and it is whole.
    before = [trial for trial in trials if trial.generation < trials[-1].generation]
    assert sum(t.documents for t in before) < 300 <= sum(t.documents for t in trials)
    assert len(trials) - len(before) == 6


def test_finished_results_are_not_scored_again(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment(budget={"candidates": 6}))
    first = study.search(plan, Silent())
    (plan.folder / folder.JOURNAL).unlink()
    again = study.search(plan, Silent())
    assert what_counts(again) == what_counts(first)
    assert [t.seconds for t in again] == [t.seconds for t in first], "they were measured anew"


def test_equal_recipes_are_scored_once(write_experiment: Callable[..., Path]) -> None:
    gene = {"low": 0.1, "high": float(np.nextafter(0.1, 1)), "init": 0.1}
    space = {"method": "task_arithmetic", "genes": {"weight": gene}}
    plan = begin(write_experiment(space=space, sampler="random", budget={"candidates": 8}))
    trials = study.search(plan, Silent())
    assert len(trials) == 8
    fresh = [t for t in trials if t.documents]
    assert len(fresh) == len({t.recipe for t in trials}) <= 2
    assert all(t.value is not None for t in trials)


def test_a_study_with_trials_is_never_abandoned(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment(budget={"candidates": 2}))
    with writing.lock(plan.folder):
        life.abandon(plan.folder)  # another process holds it
    assert plan.folder.exists()
    study.search(plan, Silent())
    life.abandon(plan.folder)
    assert len(read_trials(plan.folder)) == 2


def test_an_existing_study_is_not_run_again(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment(budget={"candidates": 4})
    begin(path)
    with pytest.raises(StudyError, match="evomerge resume"):
        life.create(load_experiment(path))


def test_a_folder_that_holds_other_things_is_left_alone(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.txt").write_text("precious")
    with pytest.raises(StudyError, match="is not an empty folder"):
        life.create(load_experiment(write_experiment()))


@pytest.mark.slow
def test_another_experiment_cannot_go_on_from_this_log(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment(budget={"candidates": 6}))
    study.search(plan, Silent())
    as_run = plan.folder / folder.EXPERIMENT
    text = as_run.read_text()
    as_run.write_text(text.replace("seed: 0", "seed: 1"))
    with pytest.raises(EvomergeError, match=r"cannot be rebuilt|is not what this sampler proposes"):
        study.search(make_plan(life.reopen(plan.folder, 12)), Silent())
    as_run.write_text(text.replace("rescale: true", "").replace("method: dare_ties", "method: dare_linear"))
    with pytest.raises(CheckpointError, match="cannot be rebuilt"):
        study.search(make_plan(life.reopen(plan.folder)), Silent())
    as_run.write_text(text.replace("climb: probability", "climb: margin", 1))
    with pytest.raises(StudyError, match="was scored with another fitness"):
        study.search(make_plan(life.reopen(plan.folder)), Silent())
    as_run.write_text(text)
    assert len(study.search(make_plan(life.reopen(plan.folder, 12)), Silent())) == 12


def test_an_expert_that_changed_since_is_refused(
    write_experiment: Callable[..., Path], family: Path, tmp_path: Path
) -> None:
    shutil.copytree(family / "models", tmp_path / "models")
    experts = {name: str(tmp_path / "models" / name) for name in ("ant", "bee")}
    plan = begin(write_experiment(experts=experts, budget={"candidates": 6}))
    study.search(plan, Silent())
    shutil.copy(family / "models/bee/model.safetensors", tmp_path / "models/ant/model.safetensors")
    with pytest.raises(CheckpointError, match=r"experts\.ant: .* have changed since"):
        make_plan(life.reopen(plan.folder, 12))
    assert life.reopen(plan.folder).budget.candidates == 6  # what was refused changed nothing


def test_a_torn_generation_is_finished_under_a_document_budget(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment(budget={"documents": 300}))
    whole = study.search(plan, Silent())
    journal = plan.folder / folder.JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]))
    assert what_counts(study.search(plan, Silent())) == what_counts(whole)


def test_a_study_in_which_every_candidate_fails_says_why(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment(budget={"candidates": 2}))
    pool = InlinePool(plan.setup())
    _failing(pool, lambda call: True)
    study.Study(plan, pool, Silent()).run()
    with pytest.raises(StudyError, match=r"(?s)all 2 candidates failed:.*not finite"):
        study.search(plan, Silent())


def _failing(pool: InlinePool, fails: Callable[[int], bool]) -> list[int]:
    """Makes the model's weights useless for some candidates, as exploding coefficients do."""
    import torch

    calls: list[int] = []
    apply = pool.workbench.merger.apply

    def broken(recipe: Any) -> None:
        apply(recipe)
        calls.append(len(calls))
        if fails(calls[-1]):
            with torch.no_grad():
                pool.workbench.model.model.norm.weight.fill_(float("nan"))

    pool.workbench.merger.apply = broken  # type: ignore[method-assign]
    return calls


@pytest.mark.slow
def test_a_candidate_that_is_nan_fails_alone_and_with_a_reason(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment(budget={"candidates": 12}))
    pool = InlinePool(plan.setup())
    _failing(pool, lambda call: call in (1, 2, 7))
    running = study.Study(plan, pool, Silent())
    running.run()
    failed = [trial for trial in running.trials if trial.value is None]
    assert [trial.number for trial in failed] == [1, 2, 7]
    assert all("not finite" in (trial.reason or "") for trial in failed)
    assert read_trials(plan.folder) == running.trials


@pytest.mark.slow
def test_a_generation_that_fails_whole_stops_and_says_why(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment())
    pool = InlinePool(plan.setup())
    _failing(pool, lambda call: True)
    with pytest.raises(StudyError, match=r"(?s)all 6 candidates of generation 0 failed:.*not finite"):
        study.Study(plan, pool, Silent()).run()
    trials = study.search(plan, Silent())
    assert len(trials) == 18, "it goes on once the cause is gone"
    assert sum(trial.value is None for trial in trials) == 6


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(family: Path, tmp_path: Path) -> None:
    """The driver is killed in mid-generation, again and again; the finished log is the uninterrupted one."""
    options: dict[str, Any] = {
        "space": {**SPACE, "layers": "each"},
        "sampler": {"name": "cma", "population": 8},
        "budget": {"candidates": 64},
    }
    for name in ("whole", "killed"):
        mapping = experiment_mapping(family, tmp_path / name, **options)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(mapping))
    whole = study.search(begin(tmp_path / "whole.yaml"), Silent())

    command = [sys.executable, "-m", "evomerge.cli.main"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    moments = random.Random(time.time_ns())
    arguments = ["run", str(tmp_path / "killed.yaml")]
    counts: list[int] = []
    for _ in range(3):
        target = (counts[-1] if counts else 0) + moments.randint(1, 18)
        process = subprocess.Popen(
            [*command, *arguments], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if f"candidate {target}/" in line:
                break
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        counts.append(len(read_trials(tmp_path / "killed")))
        arguments = ["resume", str(tmp_path / "killed")]
    assert 0 < counts[0] <= counts[1] <= counts[2] < 64, f"killed too late to mean anything: {counts}"
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert what_counts(read_trials(tmp_path / "killed")) == what_counts(whole), f"killed after {counts}"


def test_another_fidelity_or_mode_cannot_go_on_from_this_log(write_experiment: Callable[..., Path]) -> None:
    plan = begin(write_experiment(budget={"candidates": 6}))
    study.search(plan, Silent())
    as_run = plan.folder / folder.EXPERIMENT
    text = as_run.read_text()
    for change in ({"fidelity": {"batch": 8}}, {"mode": "async"}):
        as_run.write_text(yaml.safe_dump({**yaml.safe_load(text), **change}, sort_keys=False))
        with pytest.raises(StudyError, match="another sampler, fidelity or mode"):
            study.search(make_plan(life.reopen(plan.folder, 12)), Silent())
    as_run.write_text(text)
    assert len(study.search(make_plan(life.reopen(plan.folder, documents=10**6)), Silent())) == 6
