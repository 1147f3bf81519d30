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
    recipe: Annotated[Path, typer.Argument(help="A recipe file, or a mergekit configuration.", show_default=False)],
    output: OutputFolder,
) -> None:
    """Build one model from a recipe or a mergekit configuration as a Hugging Face folder, without a search."""
    refuse_existing(output)
    from evomerge.results.exporting.several_merges import merge_file

    merge_file(recipe, output, step, step.note)
    out.print(f"merged into {output}", highlight=False, soft_wrap=True)


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Another option of the operator, as NAME=VALUE; may be repeated.", show_default=False
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(help="A model folder, or a Hub id with optional @revision.", show_default=False)
]


@command
def extend(
    model: ModelArgument,
    output: OutputFolder,
    method: Annotated[
        str, typer.Option(help="How positions are rescaled: yarn, ntk, linear, longrope or llama3.")
    ] = "yarn",
    factor: Annotated[
        float | None, typer.Option(help="The new length as a multiple of the old one.", show_default=False)
    ] = None,
    target_length: Annotated[
        int | None, typer.Option(help="The new length in tokens, instead of --factor.", show_default=False)
    ] = None,
    more: SetOption = None,
    text: Annotated[
        str, typer.Option(help="The text to measure on: python, kjv, or the path of a text file.")
    ] = "python",
    as_json: JsonFlag = False,
) -> None:
    """Extend one model's context into a new folder, and measure its log-loss before and after."""
    refuse_existing(output)
    from evomerge.results import tables
    from evomerge.results.exporting import one_model

    given = {"method": method, "factor": factor, "target_length": target_length}
    options = _joined({name: value for name, value in given.items() if value is not None}, _settings(more))
    result = one_model.extend(model, output, options, step, text)
    if as_json:
        print_json(result)
        return
    out.print(tables.extension_table(result))
    out.print(f"extended into {output}", highlight=False, soft_wrap=True)


@command
def distill(
    model: ModelArgument,
    output: OutputFolder,
    teacher: Annotated[
        list[str],
        typer.Option(
            help="A model to learn from, as NAME=MODEL, of the same shapes; may be repeated.", show_default=False
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="Texts (.jsonl, .txt) for a teacher to answer, as TEACHER=FILE. "
            "With the teacher `student` the model stays as it is on them.",
            show_default=False,
        ),
    ],
    steps: Annotated[int, typer.Option(min=0, help="The number of training steps.")] = 40,
    seed: Annotated[
        int, typer.Option(min=0, help="The seed of the order of the texts, and of all that is drawn.")
    ] = 0,
    more: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Train one model on the answers of others, each to its own texts, into a new folder."""
    refuse_existing(output)
    from evomerge.results import tables
    from evomerge.results.exporting import one_model
    from evomerge.results.live import TrainingBar

    teachers, files = _pairs("--teacher", teacher), _pairs("--data", data)
    if lost := sorted(set(files) - {*teachers, one_model.STUDENT}):
        raise ConfigError("--data", [f"{name}: no --teacher has this name" for name in lost])
    own = {"data": files, "teachers": {name: name for name in files}, "steps": steps}
    options = _joined(own, _settings(more))
    with TrainingBar(err, steps) as bar:
        result = one_model.distill(model, output, teachers, options, step, bar.step, seed=seed)
    if as_json:
        print_json(result)
        return
    out.print(tables.distillation_table(result))
    out.print(f"trained into {output}", highlight=False, soft_wrap=True)


@command
def score(
    model: ModelArgument,
    fitness: Annotated[str, typer.Option(help="The name or path of a fitness file.", show_default=False)],
    split: Annotated[str, typer.Option(help="Whose tasks to score: search, holdout or all.")] = "search",
    dtype: Annotated[
        str, typer.Option(help="The dtype to load the model in: auto, float32, bfloat16 or float16.")
    ] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; a worker of a study has 1 by default.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Score any Hugging Face model with the engine of the search; nothing is written."""
    if split not in ("search", "holdout", "all"):
        raise ConfigError("--split", [f"is {split!r}; give search, holdout or all"])
    from evomerge.results import tables
    from evomerge.studies.candidates.score_model import score_model
    from evomerge.studies.experiment import read_fitness

    loaded = read_fitness(fitness, Path.cwd(), "--fitness")
    entries = {"search": loaded.search, "holdout": loaded.holdout, "all": (*loaded.search, *loaded.holdout)}[split]
    scores = score_model(model, loaded, entries, dtype=dtype, threads=threads)
    if as_json:
        print_json(scores)
        return
    out.print(tables.scores_table(scores["tasks"], scores["climbed"]))
    out.print(f"fitness {scores['fitness']:.4f}, mean {scores['mean']:.4f}", highlight=False)
    if scores["note"]:
        err.print(scores["note"])


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """The mapping that a repeated option of NAME=VALUE comes to.

    Raises:
        ConfigError: one of them is not NAME=VALUE, or a name is there twice.
    """
    pairs: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals and value):
            raise ConfigError(option, [f"{one!r}: give NAME=VALUE"])
        if name in pairs:
            raise ConfigError(option, [f"{name}: is there twice"])
        pairs[name] = value
    return pairs


def _settings(given: Sequence[str] | None) -> dict[str, Any]:
    """The options of an operator that --set gives. Values are read as YAML; a dotted name goes into a mapping."""
    options: dict[str, Any] = {}
    for name, text in _pairs("--set", given or ()).items():
        *path, last = name.split(".")
        place = options
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError("--set", [f"{name}: {part} is set to a value already"])
        place[last] = parse_yaml(text, f"--set {name}")
    return options


def _joined(own: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the command itself together with those of --set.

    Raises:
        ConfigError: --set names an option that the command has itself.
    """
    if both := sorted(set(own) & set(more)):
        raise ConfigError("--set", [f"{name}: is an option of this command; give it as that" for name in both])
    return {**own, **more}


COMMANDS = (merge, extend, distill, score)
