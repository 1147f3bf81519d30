"""Operators on one model, without a search: `evomerge extend` and `evomerge distill`.

The model is treated as a merge of itself alone, with the operator after it. So the result has a recipe, is checked
like any export, and can be built again from the recipe by `evomerge merge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from evomerge import operators
from evomerge.errors import ConfigError
from evomerge.files.schema import faults_of
from evomerge.models import Progress, checkpoints
from evomerge.models.family import Inputs
from evomerge.models.known_tokens import rows_of_inputs, unknown_token
from evomerge.models.loading import load_model, load_tokenizer, quiet
from evomerge.models.source import Source, parse_source, relocate
from evomerge.models.survey import Survey, survey_models
from evomerge.operators import Watch, unwatched
from evomerge.recipes.recipe import OperatorStep, Recipe
from evomerge.results.exporting.contents import read_about
from evomerge.results.exporting.folder import build
from evomerge.scoring.documents import texts
from evomerge.searching.spaces.operator_genes import Operator, located
from evomerge.studies.candidates import operating

STUDENT = "student"  # the name of the model itself among the teachers
_ROWS = 4  # the number of texts that a loss is measured on
_MOST = 4096  # the greatest number of tokens of such a text


def extend(
    model: str, out: Path, options: Mapping[str, Any], progress: Progress, text: str = "python", dtype: str = "auto"
) -> dict[str, Any]:
    """Extends a model's context into a new folder, and measures it before and after.

    Args:
        model: a folder, or a Hub id with optional @revision.
        out: the folder to make.
        options: the options of `operators.context_extension`.
        progress: is told of each step.
        text: the name or path of the text to measure on, see `scoring.documents.texts`.
        dtype: the dtype to load and write the model in; `auto` is the model's own.

    Returns:
        Plain values: the operator's options, the lengths in tokens, and the mean log-loss in nats per token
        `before` and `after`, each `inside` the old length and `beyond` it (None where the text or the new length
        ends there).

    Raises:
        EvomergeError: the model or the options do not do, or `out` cannot be written.
    """
    quiet()
    content, step, source = _text(text), _step("context_extension", options), _source(model)
    survey = survey_models(source, {"model": source}, dtype, progress)
    recipe = _recipe(survey, {"model": 1.0}, step, seed=0)
    operating.check_operators(survey.base, survey.experts, recipe.operators)
    _check_text(survey, content)
    build(recipe, survey, out, progress)
    progress("measuring")
    folder = checkpoints.locate(survey.base, "base")
    old, new = (_length(load_model(path, survey.dtype, "cpu")) for path in (folder, out))
    both = (("before", folder), ("after", out))
    losses = {name: _losses(path, survey.dtype, content, old, new) for name, path in both}
    return {"model": model, "options": step.options, "old_length": old, "new_length": new, **losses}


def distill(
    model: str,
    out: Path,
    teachers: Mapping[str, str],
    options: Mapping[str, Any],
    progress: Progress,
    watch: Watch = unwatched,
    *,
    seed: int = 0,
    dtype: str = "auto",
) -> dict[str, Any]:
    """Trains a model on the answers of other models, into a new folder.

    Args:
        model: a folder, or a Hub id with optional @revision.
        out: the folder to make.
        teachers: name -> a model of the same shapes and vocabulary. `options` may also name the teacher `student`,
            which is the model as it is before training.
        options: the options of `operators.distillation`. Paths are relative to the working directory.
        progress: is told of each step of the export.
        watch: is told of each step of the training.
        seed: the seed of all that is drawn.
        dtype: the dtype to load and write the model in; `auto` is the model's own.

    Returns:
        Plain values: the operator's options and its record. `before` and `after` are losses on texts that the model
        is trained on, and `loss` has the loss of each step.

    Raises:
        EvomergeError: a model, a file or an option does not do, or `out` cannot be written.
    """
    quiet()
    if taken := sorted({STUDENT, "base"} & set(teachers)):
        raise ConfigError("--teacher", [f"{taken[0]} means the model itself; name the teacher otherwise"])
    step = _step("distillation", options)
    experts = {STUDENT: _source(model), **{name: _source(one) for name, one in teachers.items()}}
    survey = survey_models(experts[STUDENT], experts, dtype, progress)
    recipe = _recipe(survey, {name: float(name == STUDENT) for name in experts}, step, seed)
    operating.check_operators(survey.base, survey.experts, recipe.operators)
    operator = operators.load(step.name)
    files = operator.corpora(operator.Options.model_validate(step.options))
    operating.check_texts(survey, None, {f"data.{name}": file for name, file in files.items()})
    folder = build(recipe, survey, out, progress, watch=watch)
    record = read_about(folder)["training"]["distillation"]
    return {"model": model, "options": step.options, **record}


def _source(model: str) -> Source:
    """The source of a model folder, relative to the working directory, or of a Hub id."""
    return relocate(Source.model_validate(parse_source(model)), Path.cwd())


def _step(name: str, options: Mapping[str, Any]) -> OperatorStep:
    """A step of a recipe: an operator with its options, whose files are relative to the working directory.

    Raises:
        ConfigError: with all faults of the options.
    """
    try:
        operators.load(name).Options.model_validate(options)
    except ValidationError as error:
        raise ConfigError(name, faults_of(error)) from error
    operator, faults = located(Operator(name=name, options=dict(options)), Path.cwd())
    if faults:
        raise ConfigError(name, faults)
    return operator.step()


def _recipe(survey: Survey, weights: Mapping[str, float], step: OperatorStep, seed: int) -> Recipe:
    """The recipe of one model as a merge of itself, with an operator after it.

    Args:
        weights: expert -> its weight, 1 for the model and 0 for all others.
    """
    return Recipe.model_validate(
        {
            "method": "linear",
            "base": survey.base,
            "experts": survey.experts,
            "dtype": survey.dtype,
            "layers": survey.layers,
            "seed": seed,
            "parameters": {"weight": dict(weights)},
            "operators": [step],
        }
    )


def _length(model: Any) -> int:
    """The longest text that a live model is meant for, in tokens."""
    return int(model.config.get_text_config().max_position_embeddings)


def _text(text: str) -> str:
    """The content of a text, by its name or path.

    Raises:
        ConfigError: there is no such text.
    """
    try:
        return texts.read_text(text, Path.cwd()).decode("utf-8", "replace")
    except ValueError as error:
        raise ConfigError("--text", [str(error)]) from error


def _check_text(survey: Survey, content: str) -> None:
    """Refuses a text to measure on whose tokens the model does not have.

    Raises:
        ConfigError: naming the token.
    """
    inputs = Inputs(survey.base, {})
    tokenizer = inputs.tokenizer()
    ids = tokenizer(content[: 8 * _ROWS * _MOST], verbose=False)["input_ids"]
    if (wrong := unknown_token(ids, rows_of_inputs(inputs), tokenizer)) is not None:
        raise ConfigError("--text", [wrong])


def _losses(folder: Path, dtype: str, content: str, old: int, new: int) -> dict[str, float | None]:
    """The mean log-loss of a model on pieces of a text, in nats per token, inside the old length and beyond it."""
    model, length = load_model(folder, dtype, "cpu"), min(new, _MOST)
    # With up to eight characters a token so much text is enough for all pieces, and the rest need not be tokenized.
    ids = load_tokenizer(folder)(content[: 8 * _ROWS * length], return_tensors="pt").input_ids[0]
    rows = [row for row in ids.split(length) if len(row) == length][:_ROWS] or [ids[:length]]
    inside, beyond = [], []
    with torch.inference_mode():
        for row in rows:
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")
            inside.append(loss[: old - 1])
            beyond.append(loss[old - 1 :])
    return {"inside": _mean(inside), "beyond": _mean(beyond)}


def _mean(losses: list[torch.Tensor]) -> float | None:
    """The mean of all losses; None if there is none."""
    every = torch.cat(losses)
    return float(every.mean()) if len(every) else None
