"""Studies, trials and plans as plain values, for tables and for JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge import operators
from evomerge.results import fronts, warnings
from evomerge.results.hypervolume import hypervolume
from evomerge.results.truncation import truncation_warnings
from evomerge.studies import life, scores, second_phase
from evomerge.studies.candidates.score import PHASES
from evomerge.studies.trials import Trial, best_trial

if TYPE_CHECKING:  # which imports torch
    from evomerge.studies.plan import Plan


def summary(trials: Sequence[Trial], experiment: Any, folder: str) -> dict[str, Any]:
    """A study as plain values, as `evomerge status --json` prints them.

    Args:
        trials: all trials of the study.
        experiment: the study's `Experiment`.
        folder: the study's folder.
    """
    best, at_end = best_trial(trials), life.ended(Path(folder), len(trials))
    every, trials = trials, [trial for trial in trials if trial.searched]
    finished = [trial for trial in trials if trial.value is not None]
    spent = [trial.seconds for trial in trials if trial.seconds]
    several = experiment.fitness.objective == "pareto"
    second = second_phase.warnings(experiment.experts, experiment.operators, every)
    advised = warnings.after(
        trials,
        warnings.coordinates_of(experiment.space, experiment.operators, trials),
        ended=at_end,
        pareto=several,
        fresh=experiment.sampler.module.FRESH_DOCUMENTS,
    )
    return {
        "study": folder,
        "candidates": len(trials),
        "budget": experiment.budget.model_dump(exclude_none=True),
        "finished": at_end,
        "failed": len(trials) - len(finished),
        "generations": 1 + max((trial.generation for trial in trials), default=-1),
        "documents": sum(trial.documents for trial in trials),
        "tokens": sum(trial.tokens for trial in trials),
        "seconds_per_candidate": {
            phase: statistics.median(one.get(phase, 0.0) for one in spent) for phase in PHASES if spent
        },
        "elapsed": max((trial.elapsed for trial in trials), default=0.0),
        "best": None if best is None else trial_json(best),
        **({"trained": rows} if (rows := training_rows(every)) else {}),
        "warnings": [*([] if best is None else _warnings(best, finished, Path(folder))), *advised, *second],
        **(_front(trials) if several and finished else {}),
    }


def _front(trials: Sequence[Trial]) -> dict[str, Any]:
    """The part of a summary on several objectives: the front, the best fitness first; its knee; its hypervolume."""
    front = sorted(fronts.front(trials), key=lambda trial: (-(trial.value or 0.0), trial.number))
    points = [tuple(trial.climbed.values()) for trial in front]
    return {
        "front": [trial_json(trial) for trial in front],
        "knee": fronts.knee(front).number,
        "hypervolume": hypervolume(points, fronts.reference(trials)),
    }


def _warnings(best: Trial, finished: Sequence[Trial], folder: Path) -> list[str]:
    """Warnings if the best trial's answers were cut off more or less often than those of the median trial."""
    if not any(trial.truncated for trial in finished):
        return []
    score = scores.read_score(folder, best.recipe, best.fitness)
    kept = [scores.read_truncated(folder, recipe, best.fitness) for recipe in {one.recipe for one in finished}]
    counts = [truncated for truncated in kept if truncated is not None]
    if score is None or not counts:
        return []
    median = {task: statistics.median_low(one[task] for one in counts) for task in score.report.tasks}
    return list(truncation_warnings(f"trial {best.number}", score.report, {"the median trial": median}))


def trial_json(trial: Trial) -> dict[str, Any]:
    """A trial as plain values: its fields, and the plain `mean` of its reported metrics."""
    return {**trial.record(), "mean": trial.mean}


def training_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The second phase as plain values: a row for each elite and for the control, before and after training.

    The best trained one comes first.
    """
    rows = []
    for trial in trials:
        if trial.role not in ("trained", "control"):
            continue
        before = second_phase.before_training(trial, trials)
        rows.append(
            {
                "name": f"control: {trial.parent}" if trial.parent else f"trial {trial.number}",
                "before": None if before is None else before.value,
                "after": trial.value,
                "steps": sum(one["steps"] for one in trial.training_records.values()),
                "tokens": sum(one["tokens"] for one in trial.training_records.values()),
                "seconds": sum(one["seconds"] for one in trial.training_records.values()),
                "reason": trial.reason,
            }
        )
    return sorted(rows, key=lambda row: -math.inf if row["after"] is None else -row["after"])


def plan_json(plan: Plan) -> dict[str, Any]:
    """An experiment laid over its models as plain values, as `evomerge check --json` prints them."""
    experiment = plan.experiment
    return {
        "base": str(plan.survey.base),
        "experts": ", ".join(experiment.experts),
        "parameters": plan.survey.parameters,
        "layers": plan.survey.layers,
        **plan.survey.told(),
        "dtype": plan.survey.dtype,
        "model_bytes": plan.model_bytes,
        "checkpoint_bytes": plan.survey.nbytes,
        "method": " or ".join(experiment.space.methods),
        "genes": len(plan.coordinates),
        "sampler": experiment.sampler.name,
        "search_tasks": ", ".join(entry.task for entry in experiment.fitness.search),
        "holdout_tasks": ", ".join(entry.task for entry in experiment.fitness.holdout) or "none",
        **({"operators": ", ".join(one.name for one in experiment.operators)} if experiment.operators else {}),
        **({"training": _expected(plan)} if plan.training else {}),
        "study": str(plan.folder),
    }


def _expected(plan: Plan) -> str:
    """A sentence on what the second phase roughly takes for each of its candidates."""
    costs = []
    for operator in plan.training:
        module = operators.load(operator.name)
        cost = module.estimate(module.Options.model_validate(operator.options), plan.survey.parameters)
        costs.append(
            f"{operator.name}: at most {cost.steps} steps of {cost.tokens:,} tokens, {_size(cost.peak_bytes)} of "
            f"memory beside activations, {_size(cost.disk_bytes)} on disk"
        )
    return "; ".join(costs)


def _size(count: int) -> str:
    """A number of bytes as people read it."""
    return f"{count / 2**20:,.1f} MiB"
