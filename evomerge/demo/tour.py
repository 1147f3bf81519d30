"""The demo from end to end: train a family, search for its best merge, test the winner, and export it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from evomerge.demo.experiment import write_experiment
from evomerge.demo.family import train_family
from evomerge.errors import StudyError
from evomerge.files import writing
from evomerge.results import live, summary, tables
from evomerge.results.certificate import as_json, certify_winner
from evomerge.results.exporting.folder import export_trial
from evomerge.studies import journal, life, study
from evomerge.studies.experiment import load_experiment
from evomerge.studies.folder import EXPERIMENT
from evomerge.studies.plan import Plan, make_plan, recipe_of
from evomerge.studies.trials import Trial, best_trial

EXPORT = "merged"  # the folder of the winner, in the demo's folder


def run(folder: Path, candidates: int, err: Console, out: Console) -> dict[str, Any]:
    """Runs the demo in a folder. An interrupted demo goes on: models and trials that are there are not made again.

    Args:
        folder: the folder for models, study and export.
        candidates: the budget of the whole search. A later call with a larger budget goes on with the search.
        err: the console for progress.
        out: the console for the result.

    Returns:
        The result as plain values: the paths of `experiment`, `study` and `export`, the `best` trial, and the
        certificate (`holdout`).

    Raises:
        EvomergeError: the search cannot go on, or no candidate was scored.
    """
    err.print(f"1. a tiny family of models, trained here, in {folder / 'models'}", markup=False)
    with writing.saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _train(folder, err)
        path = folder / "experiment.yaml"
        if not path.exists():  # a person may have edited the one of an earlier run
            path = write_experiment(folder, candidates)
    err.print(f"2. a search for their best merge: {path}", markup=False)
    plan, trials = _search(path, candidates, err)
    winner = best_trial(trials)
    if winner is None:
        raise StudyError(f"{plan.folder}: no candidate was scored")

    def step(text: str) -> None:
        err.print(f"{text} ...", style="dim", markup=False, highlight=False)

    err.print("3. the winner, its parents and the uniform average on documents that the search never saw")
    certificate = certify_winner(plan, recipe_of(plan, winner), step)
    err.print("4. the winner as an ordinary Hugging Face folder")
    target = folder / EXPORT
    if (target / "evomerge.json").is_file():  # the export of an earlier run
        shutil.rmtree(target)
    export_trial(plan, winner, target, step)
    out.print(tables.certificate_table(certificate))
    out.print(certificate.verdict, highlight=False, soft_wrap=True)
    out.print(
        f"The winner, trial {winner.number} of {len(trials)}, is in {target}", highlight=False, soft_wrap=True
    )
    return {
        "experiment": str(path),
        "study": str(plan.folder),
        "export": str(target),
        "best": summary.trial_json(winner),
        "holdout": as_json(certificate),
    }


def _train(folder: Path, err: Console) -> None:
    """Trains the family, with a progress bar on a terminal and a line for each model elsewhere."""
    columns = (TextColumn("   {task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("training", total=None)
        last = ""

        def show(done: int, total: int, text: str) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total, description=text)
            if text != last and not err.is_terminal:
                err.print(f"   {text}", markup=False, highlight=False)
            last = text

        train_family(folder, progress=show)


def _search(path: Path, candidates: int, err: Console) -> tuple[Plan, list[Trial]]:
    """Begins the search, or goes on with the one that is there. Returns its plan and all its trials."""
    experiment = load_experiment(path)
    folder = Path(experiment.study)
    if (folder / EXPERIMENT).exists():
        experiment = life.reopen(folder, candidates)
        plan = make_plan(experiment)
    else:
        budget = experiment.budget.model_copy(update={"candidates": candidates})
        experiment = experiment.model_copy(update={"budget": budget})
        plan = make_plan(experiment)
        life.create(plan.experiment)
    earlier = journal.read_trials(folder) if journal.exists(folder) else []
    with live.LiveView(err, plan.experiment.budget, earlier) as view:
        return plan, study.search(plan, view, view.message)
