"""Commands that run a search and look at it: `run`, `resume`, `status`, `check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli.app import INTERRUPTED, JsonFlag, StudyFolder, command, err, out, print_json, step, warn_before
from evomerge.errors import CheckpointError, ConfigError, StudyError, WorkerError

if TYPE_CHECKING:
    from evomerge.studies.experiment import Experiment
    from evomerge.studies.plan import Plan
    from evomerge.studies.trials import Trial


@command
def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Run a search from an experiment file, and keep all that it finds in the study's folder."""
    step(f"reading {experiment}")  # before the imports, which take seconds
    from evomerge.studies import life
    from evomerge.studies.experiment import load_experiment
    from evomerge.studies.journal import check_storage

    loaded = load_experiment(experiment)
    if (Path(loaded.study) / "experiment.yaml").exists():
        life.create(loaded)  # refuses, before any model is read
    check_storage(loaded.storage)
    step("loading torch and transformers")
    from evomerge.studies.plan import make_plan

    plan = make_plan(loaded, step)
    warn_before(plan)
    life.create(plan.experiment)
    try:
        _search(plan, as_json)
    except (ConfigError, CheckpointError, WorkerError, StudyError):
        life.abandon(plan.folder)
        raise


@command
def resume(
    folder: StudyFolder,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="The new budget of candidates, for the whole study.")
    ] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="The new budget of document evaluations, for the whole study.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Go on with a study that was stopped, or give a finished one a larger budget."""
    step(f"reading {folder}")
    from evomerge.studies import journal, life

    experiment = life.reopen(folder, candidates, documents)
    trials = journal.read_trials(folder) if journal.exists(folder) else []
    searched = sum(trial.searched for trial in trials)
    if candidates is not None and candidates < searched:
        raise ConfigError("--candidates", [f"is {candidates}, but the study has {searched} already; give more"])
    if experiment.budget == life.reopen(folder).budget and life.ended(folder, len(trials)):
        step.done()
        err.print("nothing is left to do: its budget is spent; give it more by --candidates or --documents")
        _show(trials, experiment, folder, as_json)
        return
    step("loading torch and transformers")
    from evomerge.studies.plan import make_plan

    _search(make_plan(experiment, step), as_json)


def _search(plan: Plan, as_json: bool) -> None:
    """Runs a study that has a folder to its end, and shows what it came to."""
    from evomerge.results.live import LiveView
    from evomerge.studies import journal, study

    step.done()
    earlier = journal.read_trials(plan.folder) if journal.exists(plan.folder) else []
    try:
        with LiveView(err, plan.experiment.budget, earlier) as view:
            trials = study.search(plan, view, view.message)
    except KeyboardInterrupt:
        err.print(f"stopped; go on with `evomerge resume {plan.folder}`", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if earlier and len(trials) == len(earlier):
        err.print("nothing was added: the budget has no room for one more generation", style="yellow")
    _show(trials, plan.experiment, plan.folder, as_json)


def _show(trials: Sequence[Trial], experiment: Experiment, folder: Path, as_json: bool) -> None:
    """Prints what a search came to: as tables with the commands to go on with, or as JSON."""
    from evomerge.results import tables
    from evomerge.results.summary import summary
    from evomerge.studies.trials import best_trial

    summarized = summary(trials, experiment, str(folder))
    if as_json:
        print_json(summarized)
        return
    out.print(tables.summary_table(summarized))
    if "trained" in summarized:
        out.print(tables.training_table(summarized["trained"]))
    if (winner := best_trial(trials)) is not None:
        out.print(tables.trials_table([winner], title="best trial"))
    out.print(f"build it: evomerge export {folder} OUT", soft_wrap=True, highlight=False)
    if experiment.fitness.holdout:
        out.print(f"test it:  evomerge certify {folder}", soft_wrap=True, highlight=False)


@command
def status(
    folder: StudyFolder,
    top: Annotated[int, typer.Option(min=1, help="How many of the best trials to show.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Show how a study stands, whether it is running or not, and its best trials."""
    from evomerge.studies import journal
    from evomerge.studies.life import reopen

    experiment = reopen(folder)
    trials = journal.read_trials(folder) if journal.exists(folder) else []
    from evomerge.results import tables
    from evomerge.results.summary import summary, trial_json
    from evomerge.studies.trials import ranked_trials

    summarized = summary(trials, experiment, str(folder))
    ranked = ranked_trials(trials)[:top]
    if as_json:
        print_json({**summarized, "top": [trial_json(trial) for trial in ranked]})
        return
    out.print(tables.summary_table(summarized))
    if ranked:
        out.print(tables.trials_table(ranked, title="best trials"))
    if "trained" in summarized:
        out.print(tables.training_table(summarized["trained"]))
    if "front" in summarized:
        numbers = [one["number"] for one in summarized["front"]]
        out.print(tables.front_table([trials[number] for number in numbers], top, summarized["knee"]))


@command
def check(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Check an experiment's files, models, search space, tasks and metrics, without beginning its study."""
    step(f"reading {experiment}")
    from evomerge.studies.experiment import load_experiment
    from evomerge.studies.journal import check_storage

    loaded = load_experiment(experiment)
    check_storage(loaded.storage)
    step("loading torch and transformers")
    from evomerge.results import tables
    from evomerge.results.summary import plan_json
    from evomerge.studies.check import check_tasks, check_workers
    from evomerge.studies.plan import make_plan

    plan = make_plan(loaded, step)
    # The machines of a cluster are not known here, so only this machine is checked.
    machine = check_workers(plan) if loaded.workers.address is None else {}
    step("building the tasks")
    documents, note = check_tasks(plan)
    step.done()
    planned = {**plan_json(plan), **machine}
    warnings = warn_before(plan)
    if as_json:
        print_json({**planned, "documents": documents, "note": note, "warnings": warnings})
        return
    out.print(tables.plan_table(planned))
    if not machine.get("fits", True):
        err.print("the checkpoints do not fit in this machine's free memory: merges will read from disk")
    for task, count in documents.items():
        out.print(f"  {task}: {count:,} documents", highlight=False)
    if note:
        err.print(note)
    out.print("nothing is wrong with it", style="green")


COMMANDS = (run, resume, status, check)
