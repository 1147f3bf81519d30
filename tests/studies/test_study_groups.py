"""Studies of a group whose plain mean over tasks counts: in mini-batches, interrupted, certified."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.results.certificate import certify_winner
from evomerge.scoring.fitness import Fitness
from evomerge.studies import journal, study
from evomerge.studies.candidates.score_model import score_model
from evomerge.studies.plan import Plan, recipe_of
from evomerge.studies.scores import read_score
from evomerge.studies.trials import Trial
from evomerge.studies.workers.inline_pool import InlinePool
from tests.helpers.studies import Silent, all_that_counts, begin

pytestmark = pytest.mark.slow

# The entry of the search has tasks of 24, 6 and 1 documents, of a third each; that of the hold-out has 24 and 6.
_TASKS = """

def small(**kwargs):
    return {"test": _documents(11, 0)["test"].select(range(6))}


def lone(**kwargs):
    return {"test": _documents(12, 0)["test"].select(range(1))}


def small_test(**kwargs):
    return {"test": _documents(13, 0)["test"].select(range(6))}
"""
_GROUP = "aggregate_metric_list: [{metric: acc, weight_by_size: false}]\n"


@pytest.fixture
def lay(family: Path, tmp_path: Path, write_experiment: Callable[..., Path]) -> Callable[..., Plan]:
    """Creates a study of the groups: `lay(folder, **changes)`."""
    tasks = tmp_path / "tasks"
    shutil.copytree(family / "tasks", tasks)
    with (tasks / "letters.py").open("a") as file:
        file.write(_TASKS)
    for name in ("small", "lone", "small_test"):
        text = (tasks / "first.yaml").read_text().replace("letters.first", f"letters.{name}")
        (tasks / f"{name}.yaml").write_text(text.replace("task: first", f"task: {name}"))
    members = "[first, {group: inner, task: [small, lone]}]"
    (tasks / "mixed.yaml").write_text(f"group: mixed\ntask: {members}\n{_GROUP}")
    (tasks / "mixed_test.yaml").write_text(f"group: mixed_test\ntask: [first_test, small_test]\n{_GROUP}")

    def make(folder: str, **changes: Any) -> Plan:
        options: dict[str, Any] = {
            "fitness": {
                "include": str(tasks),
                "search": [{"task": "mixed", "climb": "probability"}],
                "holdout": [{"task": "mixed_test"}],
            },
            "sampler": {"name": "cma", "population": 4},
            "fidelity": {"batch": 8, "select": 0.25},
            "budget": {"candidates": 15},
        }
        return begin(write_experiment(**{**options, "study": str(tmp_path / folder), **changes}))

    return make


def run(plan: Plan, stop: int | None = None) -> list[Trial]:
    found = study.Study(plan, InlinePool(plan.setup()), Silent(stop))
    found.run()
    return found.trials


def test_a_group_in_mini_batches_goes_on_exactly_and_is_certified_as_lm_eval_counts_it(
    lay: Callable[..., Plan],
) -> None:
    plan = lay("whole")
    trials = run(plan)
    parts = lay("parts")
    for stop in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            run(parts, stop)
    assert all_that_counts(run(parts)) == all_that_counts(trials)
    assert all_that_counts(journal.read_trials(parts.folder)) == all_that_counts(trials)
    for trial in trials:
        assert trial.value == pytest.approx(trial.climbed["mixed"], abs=1e-12)
    final = trials[-1]
    assert final.role == "final"
    kept = read_score(plan.folder, final.recipe, final.fitness)
    assert kept is not None
    for metric, found in (("acc", final.tasks), ("probability", final.climbed)):
        means = [task.metrics[metric].mean() for task in kept.report.tasks.values()]
        assert len(means) == 3
        assert found["mixed"] == pytest.approx(np.mean(means), abs=1e-12)
    certificate = certify_winner(plan, recipe_of(plan, final))
    assert certificate.documents == 30
    winner = certificate.rows[-1]
    for row in certificate.rows[:-1]:
        assert row.against is not None
        assert row.against.gain == pytest.approx(winner.mean - row.mean, abs=1e-12)
        assert row.against.low <= row.against.gain <= row.against.high
    fitness = Fitness.model_validate(plan.experiment.fitness.model_dump())
    base = score_model(str(plan.survey.base.model), fitness, fitness.holdout, dtype="auto", threads=1)
    assert base["tasks"] == pytest.approx(certificate.rows[0].tasks, abs=1e-12)
    assert base["documents"] == {"first_test": 24, "small_test": 6}


def test_a_gradient_in_mini_batches_climbs_the_value_that_is_logged(lay: Callable[..., Plan]) -> None:
    plan = lay("gradient", sampler={"name": "gradient", "watch": 2})
    climbed = [trial for trial in run(plan) if trial.gradient]
    assert climbed
    for trial in climbed:
        assert trial.value == pytest.approx(trial.climbed["mixed"], abs=1e-12)
