"""Commands on the trials of a study: `certify`, `export`, `promote`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli.app import (
    JsonFlag,
    OutputFolder,
    PickOption,
    StudyFolder,
    TrialOption,
    command,
    err,
    out,
    print_json,
    step,
)
from evomerge.errors import ConfigError, StudyError
from evomerge.files.writing import refuse_existing

if TYPE_CHECKING:
    from evomerge.studies.experiment import Experiment
    from evomerge.studies.plan import Plan
    from evomerge.studies.trials import Trial


@command
def certify(
    folder: StudyFolder,
    trial: TrialOption = None,
    pick: PickOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare a study's winner with its parents on held-out documents, and keep the result in its folder."""
    experiment = _reopened(folder)
    from evomerge.results import certificate, tables
    from evomerge.studies.plan import make_plan, recipe_of

    plan = make_plan(experiment, step)
    winner = recipe_of(plan, _choose(plan, trial, pick))
    certified = certificate.certify_winner(plan, winner, step)
    if as_json:
        print_json(certificate.as_json(certified))
        return
    out.print(tables.certificate_table(certified))
    out.print(certified.verdict, highlight=False, soft_wrap=True)


@command
def export(
    folder: StudyFolder,
    output: OutputFolder,
    trial: TrialOption = None,
    pick: PickOption = None,
) -> None:
    """Build a trial's model as a Hugging Face folder, and check that it is the model that was scored."""
    refuse_existing(output)
    experiment = _reopened(folder)
    from evomerge.results.exporting.folder import export_trial
    from evomerge.studies.plan import make_plan

    plan = make_plan(experiment, step)
    chosen = _choose(plan, trial, pick)
    export_trial(plan, chosen, output, step)
    out.print(f"trial {chosen.number} is in {output}", highlight=False, soft_wrap=True)


@command
def promote(
    folder: StudyFolder,
    output: Annotated[Path, typer.Argument(help="The folder to make for the next round.", show_default=False)],
    trial: TrialOption = None,
    pick: PickOption = None,
) -> None:
    """Begin the next round: write the winner's model, and an experiment that has it as one more expert."""
    refuse_existing(output)
    experiment = _reopened(folder)
    from evomerge.results.exporting.next_round import promote as promote_trial
    from evomerge.studies.plan import make_plan

    plan = make_plan(experiment, step)
    path = promote_trial(plan, _choose(plan, trial, pick), output, step)
    out.print(f"go on with: evomerge run {path}", highlight=False, soft_wrap=True)


def _reopened(folder: Path) -> Experiment:
    """The experiment of a study. A folder that is no study is refused before the imports that take seconds."""
    step(f"reading {folder}")
    from evomerge.studies.life import reopen

    experiment = reopen(folder)
    step("loading torch and transformers")
    return experiment


def _choose(plan: Plan, number: int | None, pick: str | None) -> Trial:
    """The trial that --trial or --pick names; the best one where neither is given.

    Raises:
        ConfigError: both are given, or --pick names none.
        StudyError: there is no such trial.
    """
    from evomerge.results import choosing
    from evomerge.studies import second_phase
    from evomerge.studies.journal import read_trials
    from evomerge.studies.trials import best_trial

    if number is not None and pick is not None:
        raise ConfigError("--pick", ["and --trial both choose a trial; give one of them"])
    trials = read_trials(plan.folder)
    if pick is not None:
        return choosing.pick(trials, pick)
    if number is None:
        winner = best_trial(trials)
        experiment = plan.experiment
        if second_phase.pending(experiment.experts, experiment.operators, trials):
            err.print("warning: the second phase is not finished; this is the best so far", style="yellow")
        if winner is None:
            raise StudyError(f"{plan.folder} has no finished trial yet")
        return winner
    if not 0 <= number < len(trials):
        raise StudyError(f"--trial: is {number}, but the study has trials 0 to {len(trials) - 1}")
    return trials[number]


COMMANDS = (certify, export, promote)
