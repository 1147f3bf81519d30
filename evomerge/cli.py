"""The command line. Heavy imports stand inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from evomerge import __version__, catalog, plugins
from evomerge.errors import (
    CheckpointError,
    ConfigError,
    EvomergeError,
    StudyError,
    WorkerError,
    suggest,
)

if TYPE_CHECKING:
    from evomerge.study import Plan

INTERRUPTED = 130

app = typer.Typer(
    help="Evolutionary merging of language models: exact, fast and honest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_WIDTH = None if sys.stdout.isatty() else 140  # a pipe has no width to fit
out, err = Console(width=_WIDTH, markup=False), Console(stderr=True, markup=False)

P = ParamSpec("P")
R = TypeVar("R")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
StudyFolder = Annotated[Path, typer.Argument(help="The study's folder.", show_default=False)]
PickOption = Annotated[
    str | None,
    typer.Option(
        help="Which trial: best (the default), knee, a number, or weights of tasks like maths=2,code=1.",
        show_default=False,
    ),
]


def command(function: Callable[P, R]) -> Callable[P, R]:
    """A command whose errors are one clear message and an exit code, never a traceback."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except EvomergeError as error:
            err.print("error:", style="bold red", end=" ")
            err.print(str(error), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            err.print(f"error: {where}{error.strerror or error}", highlight=False, soft_wrap=True)
            raise typer.Exit(EvomergeError.exit_code) from None
        except KeyboardInterrupt:
            err.print("stopped; what was finished is kept")
            raise typer.Exit(INTERRUPTED) from None

    return app.command()(wrapped)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Evolutionary merging of language models: exact, fast and honest."""


@command
def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Run a search from an experiment file."""
    from evomerge import config, records, study

    loaded = config.load(experiment)
    if (Path(loaded.study) / "experiment.yaml").exists():
        study.create(loaded)  # refuses, before any model is read
    records.check_storage(loaded.storage)
    plan = study.plan(loaded, _step)
    _warn_before(plan)
    study.create(plan.experiment)
    try:
        _search(plan, as_json)
    except (ConfigError, CheckpointError, WorkerError, StudyError):
        study.abandon(plan.folder)
        raise


@command
def resume(
    folder: StudyFolder,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="A new number of candidates for the whole study.")
    ] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="A new number of document evaluations for the whole study.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Go on with a study that was stopped, or give a finished one a larger budget."""
    from evomerge import study

    _search(study.plan(study.reopen(folder, candidates, documents), _step), as_json)


def _search(plan: Plan, as_json: bool) -> None:
    from evomerge import records, report, study

    earlier = records.read_trials(plan.folder) if records.exists(plan.folder) else []
    try:
        with report.LiveView(err, plan.experiment.budget, earlier) as view:
            trials = study.search(plan, view, view.message)
    except KeyboardInterrupt:
        err.print(f"stopped; go on with `evomerge resume {plan.folder}`", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    found = report.summary(trials, plan.experiment, str(plan.folder))
    if as_json:
        _print_json(found)
        return
    out.print(report.summary_table(found))
    if "trained" in found:
        out.print(report.training_table(found["trained"]))
    if (winner := records.best(trials)) is not None:
        out.print(report.trials_table([winner], title="best trial"))
    out.print(f"build it: evomerge export {plan.folder} OUT", soft_wrap=True, highlight=False)
    if plan.experiment.fitness.holdout:
        out.print(f"test it:  evomerge certify {plan.folder}", soft_wrap=True, highlight=False)


@command
def status(
    folder: StudyFolder,
    top: Annotated[int, typer.Option(min=1, help="How many of the best trials to show.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Show how a study stands, running or not."""
    from evomerge import records, report, study

    experiment = study.reopen(folder)
    trials = records.read_trials(folder) if records.exists(folder) else []
    found = report.summary(trials, experiment, str(folder))
    ranked = records.ranked(trials)[:top]
    if as_json:
        _print_json({**found, "top": [report.trial_json(trial) for trial in ranked]})
        return
    out.print(report.summary_table(found))
    if ranked:
        out.print(report.trials_table(ranked, title="best trials"))
    if "trained" in found:
        out.print(report.training_table(found["trained"]))
    if "front" in found:
        numbers = [one["number"] for one in found["front"]]
        out.print(report.front_table([trials[number] for number in numbers], top, found["knee"]))


@command
def certify(
    folder: StudyFolder,
    trial: Annotated[int | None, typer.Option(help="A trial; the best by default.")] = None,
    pick: PickOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare a study's winner with its parents on held-out documents, with paired tests."""
    from evomerge import certify as certification
    from evomerge import report, study

    plan = study.plan(study.reopen(folder), _step)
    chosen = _choose(plan, trial, pick)
    winner = study.recipe_of(plan, chosen)
    found = certification.run(plan, winner, _step)
    if as_json:
        _print_json(certification.as_json(found))
        return
    out.print(report.certificate_table(found))
    out.print(found.verdict, highlight=False, soft_wrap=True)


@command
def export(
    folder: StudyFolder,
    output: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
    trial: Annotated[int | None, typer.Option(help="A trial's number; the best by default.")] = None,
    pick: PickOption = None,
) -> None:
    """Build a trial's model as a Hugging Face folder, and check that it is the one that was scored."""
    from evomerge import export as exporting
    from evomerge import study

    _refuse_existing(output)
    plan = study.plan(study.reopen(folder), _step)
    chosen = _choose(plan, trial, pick)
    exporting.export_trial(plan, chosen, output, _step)
    out.print(f"trial {chosen.number} is in {output}", highlight=False, soft_wrap=True)


@command
def promote(
    folder: StudyFolder,
    output: Annotated[Path, typer.Argument(help="The next round's folder, to make.", show_default=False)],
    trial: Annotated[int | None, typer.Option(help="A trial's number; the best by default.")] = None,
    pick: PickOption = None,
) -> None:
    """Begin the next round: a study's winner as one more expert of a new experiment."""
    from evomerge import promotion, study

    _refuse_existing(output)
    plan = study.plan(study.reopen(folder), _step)
    path = promotion.promote(plan, _choose(plan, trial, pick), output, _step)
    out.print(f"go on with: evomerge run {path}", highlight=False, soft_wrap=True)


@command
def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, or mergekit's.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
) -> None:
    """Build one model from a recipe or a mergekit configuration, without a search."""
    from evomerge import export as exporting

    _refuse_existing(output)
    exporting.export_recipe(recipe, output, _step)
    out.print(f"merged into {output}", highlight=False, soft_wrap=True)


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any other option of the operator, NAME=VALUE; may be repeated.", show_default=False
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(help="A model folder, or a Hub id with optional @revision.", show_default=False)
]


@command
def extend(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
    method: Annotated[str, typer.Option(help="yarn, ntk, linear, longrope or llama3")] = "yarn",
    factor: Annotated[float | None, typer.Option(help="How many times the length.", show_default=False)] = None,
    target_length: Annotated[int | None, typer.Option(help="Or the length, in tokens.", show_default=False)] = None,
    more: SetOption = None,
    text: Annotated[str, typer.Option(help="What to measure on: python, kjv, or a text file.")] = "python",
    as_json: JsonFlag = False,
) -> None:
    """Extend one model's context, and measure it before and after."""
    from evomerge import report, single

    _refuse_existing(output)
    given = {"method": method, "factor": factor, "target_length": target_length}
    options = _apart({name: value for name, value in given.items() if value is not None}, _settings(more))
    found = single.extend(model, output, options, _step, text)
    if as_json:
        _print_json(found)
        return
    out.print(report.extension_table(found))
    out.print(f"extended into {output}", highlight=False, soft_wrap=True)


@command
def distill(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
    teacher: Annotated[
        list[str], typer.Option(help="NAME=MODEL of the same shapes; may be repeated.", show_default=False)
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="TEACHER=FILE, texts (.jsonl, .txt) for it to answer; `student` keeps the model as it is on them.",
            show_default=False,
        ),
    ],
    steps: Annotated[int, typer.Option(min=0, help="Training steps.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the texts, and of what is drawn.")] = 0,
    more: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Train one model on what others answer, each on its own texts."""
    from evomerge import report, single

    _refuse_existing(output)
    teachers, files = _pairs("--teacher", teacher), _pairs("--data", data)
    if lost := sorted(set(files) - {*teachers, single.STUDENT}):
        raise ConfigError("--data", [f"{name}: no --teacher has this name" for name in lost])
    own = {"data": files, "teachers": {name: name for name in files}, "steps": steps}
    options = _apart(own, _settings(more))
    with report.TrainingBar(err, steps) as bar:
        found = single.distill(model, output, teachers, options, _step, bar.step, seed=seed)
    if as_json:
        _print_json(found)
        return
    out.print(report.distillation_table(found))
    out.print(f"trained into {output}", highlight=False, soft_wrap=True)


@command
def score(
    model: Annotated[str, typer.Argument(help="A model folder, or a Hub id with optional @revision.")],
    fitness: Annotated[str, typer.Option(help="A fitness by name or path.", show_default=False)],
    split: Annotated[str, typer.Option(help="search, holdout or all")] = "search",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads. A study's own are 1 by default.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Score any Hugging Face model with the engine of the search."""
    from evomerge import config, report, scorecard

    if split not in ("search", "holdout", "all"):
        raise ConfigError("--split", [f"is {split!r}; give search, holdout or all"])
    loaded = config.read_fitness(fitness, Path.cwd(), "--fitness")
    entries = {"search": loaded.search, "holdout": loaded.holdout, "all": (*loaded.search, *loaded.holdout)}[split]
    found = scorecard.score_model(model, loaded, entries, dtype=dtype, threads=threads)
    if as_json:
        _print_json(found)
        return
    out.print(report.scores_table(found["tasks"], found["climbed"]))
    out.print(f"fitness {found['fitness']:.4f}, mean {found['mean']:.4f}", highlight=False)
    if found["note"]:
        err.print(found["note"])


@command
def check(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Check an experiment without running it: files, models, search space, tasks, metrics."""
    from evomerge import config, records, report, scorecard, study

    loaded = config.load(experiment)
    records.check_storage(loaded.storage)
    plan = study.plan(loaded, _step)
    # Of a cluster's machines nothing is known here.
    machine = scorecard.check_workers(plan) if loaded.workers.address is None else {}
    _step("building the tasks")
    documents, note = scorecard.check_tasks(plan)
    found = {**report.plan_json(plan), **machine}
    warnings = _warn_before(plan)
    if as_json:
        _print_json({**found, "documents": documents, "note": note, "warnings": warnings})
        return
    out.print(report.plan_table(found))
    if not machine.get("fits", True):
        err.print("the checkpoints do not fit in this machine's free memory: merges will read from disk")
    for task, count in documents.items():
        out.print(f"  {task}: {count:,} documents", highlight=False)
    if note:
        err.print(note)
    out.print("nothing is wrong with it", style="green")


@command
def ls(
    kind: Annotated[
        str, typer.Argument(help="methods, samplers, operators, search_spaces or fitness; all by default")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """List what there is: methods, samplers, operators, search spaces, fitness files."""
    kinds = (*plugins.KINDS, *catalog.KINDS)
    if kind and kind not in kinds:
        raise ConfigError("ls", [f"there is no kind {kind!r}.{suggest(kind, kinds)}"])
    found = {name: _listing(name) for name in ([kind] if kind else kinds)}
    if as_json:
        _print_json(found)
        return
    for name, rows in found.items():
        table = Table(title=name.replace("_", " "), title_justify="left", show_header=False, box=None)
        for row, about in rows.items():
            table.add_row(f"  {row}", about, style=None)
        out.print(table)


def _listing(kind: str) -> dict[str, str]:
    if kind in plugins.KINDS:
        return {name: plugins.summary(kind, name) for name in plugins.names(kind)}
    return {name: _first_comment(catalog.folder(kind) / f"{name}.yaml") for name in catalog.names(kind)}


def _first_comment(path: Path) -> str:
    """The first sentence of a file's opening comment."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return text.partition(". ")[0].removesuffix(".")


@command
def cp(
    name: Annotated[str, typer.Argument(help="A shipped search space or fitness.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="A file or folder; here by default.")] = Path("."),
) -> None:
    """Copy a shipped search space or fitness file, to change it."""
    homes = [kind for kind in catalog.KINDS if name in catalog.names(kind)]
    if not homes:
        known = [shipped for kind in catalog.KINDS for shipped in catalog.names(kind)]
        raise ConfigError("cp", [f"nothing named {name!r} ships with evomerge.{suggest(name, known)}"])
    source = catalog.folder(homes[0]) / f"{name}.yaml"
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise StudyError(f"{target} exists already; give another name")
    try:
        include = catalog.read_yaml(source).get("include")
        if include and (target.parent / include).exists():
            raise StudyError(f"{target.parent / include} exists already; copy to another folder")
        shutil.copy(source, target)
        if include:  # a fitness file is no use without its tasks
            shutil.copytree(source.parent / include, target.parent / include)
    except OSError as error:
        raise StudyError(f"{target} cannot be written: {error.strerror}") from error
    out.print(f"copied to {target}", highlight=False, soft_wrap=True)


@command
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where models, study and export go.")] = Path(
        "evomerge-demo"
    ),
    candidates: Annotated[int, typer.Option(min=1, help="Candidates of the search.")] = 400,
    as_json: JsonFlag = False,
) -> None:
    """Train a tiny family of models, search for their best merge, compare and export it: about three minutes."""
    from evomerge.demo import tour

    found = tour.run(folder, candidates, err, out if not as_json else err)
    if as_json:
        _print_json(found)


# --- shared by the commands --------------------------------------------------------------------------------


def _warn_before(plan: Plan) -> list[str]:
    """Tells on standard error what can be said against an experiment before it runs."""
    from evomerge import advice

    experiment = plan.experiment
    found = advice.before(plan.coordinates, experiment.budget, experiment.sampler)
    for text in found:
        err.print(f"warning: {text}", style="yellow", highlight=False, soft_wrap=True)
    return found


def _choose(plan: Plan, number: int | None, pick: str | None) -> Any:
    from evomerge import elites, pareto, records

    if number is not None and pick is not None:
        raise ConfigError("--pick", ["and --trial both choose a trial; give one of them"])
    trials = records.read_trials(plan.folder)
    if pick is not None:
        return pareto.pick(trials, pick)
    if number is None:
        winner = records.best(trials)
        experiment = plan.experiment
        if elites.pending(experiment.experts, experiment.operators, trials):
            err.print("warning: the second phase is not finished; this is the best so far", style="yellow")
        if winner is None:
            raise StudyError(f"{plan.folder} has no finished trial yet")
        return winner
    if not 0 <= number < len(trials):
        raise StudyError(f"--trial: is {number}, but the study has trials 0 to {len(trials) - 1}")
    return trials[number]


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, repeated, as a mapping."""
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals and value):
            raise ConfigError(option, [f"{one!r}: give NAME=VALUE"])
        if name in found:
            raise ConfigError(option, [f"{name}: is there twice"])
        found[name] = value
    return found


def _settings(given: Sequence[str] | None) -> dict[str, Any]:
    """An operator's options; values are read as YAML, and a dotted name goes into a mapping."""
    found: dict[str, Any] = {}
    for name, text in _pairs("--set", given or ()).items():
        *path, last = name.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError("--set", [f"{name}: {part} is set to a value already"])
        place[last] = catalog.parse_yaml(text, f"--set {name}")
    return found


def _apart(own: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the command's own, and those of --set, which are others."""
    if both := sorted(set(own) & set(more)):
        raise ConfigError("--set", [f"{name}: is an option of this command; give it as that" for name in both])
    return {**own, **more}


def _refuse_existing(output: Path) -> None:
    """Refuses before any model is read."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StudyError(f"{output} exists already; give another folder, or remove it first")


def _step(text: str) -> None:
    err.print(f"{text} ...", style="dim", markup=False, highlight=False)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def main() -> None:
    """The `evomerge` command."""
    # lm-eval and datasets look for a hub at every turn; what a person names by Hub id is fetched all the same.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


if __name__ == "__main__":
    main()
