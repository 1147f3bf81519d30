"""Commands on single models: `merge`, `extend`, `distill`, `score`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from evomerge.cli.app import JsonFlag, OutputFolder, command, err, out, print_json, step
from evomerge.errors import ConfigError
from evomerge.files.writing import refuse_existing
from evomerge.files.yaml import parse_yaml


@command
def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, or mergekit's.", show_default=False)],
    output: OutputFolder,
) -> None:
    """Build one model from a recipe or a mergekit configuration, without a search."""
    refuse_existing(output)
    from evomerge.results.exporting.folder import export_recipe

    export_recipe(recipe, output, step)
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
    output: OutputFolder,
    method: Annotated[str, typer.Option(help="yarn, ntk, linear, longrope or llama3")] = "yarn",
    factor: Annotated[float | None, typer.Option(help="How many times the length.", show_default=False)] = None,
    target_length: Annotated[int | None, typer.Option(help="Or the length, in tokens.", show_default=False)] = None,
    more: SetOption = None,
    text: Annotated[str, typer.Option(help="What to measure on: python, kjv, or a text file.")] = "python",
    as_json: JsonFlag = False,
) -> None:
    """Extend one model's context, and measure it before and after."""
    refuse_existing(output)
    from evomerge.results import tables
    from evomerge.results.exporting import one_model

    given = {"method": method, "factor": factor, "target_length": target_length}
    options = _apart({name: value for name, value in given.items() if value is not None}, _settings(more))
    found = one_model.extend(model, output, options, step, text)
    if as_json:
        print_json(found)
        return
    out.print(tables.extension_table(found))
    out.print(f"extended into {output}", highlight=False, soft_wrap=True)


@command
def distill(
    model: ModelArgument,
    output: OutputFolder,
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
    refuse_existing(output)
    from evomerge.results import tables
    from evomerge.results.exporting import one_model
    from evomerge.results.live import TrainingBar

    teachers, files = _pairs("--teacher", teacher), _pairs("--data", data)
    if lost := sorted(set(files) - {*teachers, one_model.STUDENT}):
        raise ConfigError("--data", [f"{name}: no --teacher has this name" for name in lost])
    own = {"data": files, "teachers": {name: name for name in files}, "steps": steps}
    options = _apart(own, _settings(more))
    with TrainingBar(err, steps) as bar:
        found = one_model.distill(model, output, teachers, options, step, bar.step, seed=seed)
    if as_json:
        print_json(found)
        return
    out.print(tables.distillation_table(found))
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
    if split not in ("search", "holdout", "all"):
        raise ConfigError("--split", [f"is {split!r}; give search, holdout or all"])
    from evomerge.results import tables
    from evomerge.studies.candidates.score_model import score_model
    from evomerge.studies.experiment import read_fitness

    loaded = read_fitness(fitness, Path.cwd(), "--fitness")
    entries = {"search": loaded.search, "holdout": loaded.holdout, "all": (*loaded.search, *loaded.holdout)}[split]
    found = score_model(model, loaded, entries, dtype=dtype, threads=threads)
    if as_json:
        print_json(found)
        return
    out.print(tables.scores_table(found["tasks"], found["climbed"]))
    out.print(f"fitness {found['fitness']:.4f}, mean {found['mean']:.4f}", highlight=False)
    if found["note"]:
        err.print(found["note"])


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
        place[last] = parse_yaml(text, f"--set {name}")
    return found


def _apart(own: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the command's own, and those of --set, which are others."""
    if both := sorted(set(own) & set(more)):
        raise ConfigError("--set", [f"{name}: is an option of this command; give it as that" for name in both])
    return {**own, **more}


COMMANDS = (merge, extend, distill, score)
