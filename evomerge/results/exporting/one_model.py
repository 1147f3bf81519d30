"""Operators on one model, without a search: `evomerge extend` and `evomerge distill`.

The model is a merge of itself alone, with the operator after it, so that what comes out has a recipe, is checked
like any export, and is built again from it by `evomerge merge`.
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
from evomerge.models import checkpoints
from evomerge.models.loading import load_model, load_tokenizer, quiet
from evomerge.models.source import Source, parse_source, relocate
from evomerge.models.survey import Progress, Survey, survey_models
from evomerge.operators import Watch, unwatched
from evomerge.recipes.recipe import OperatorStep, Recipe
from evomerge.results.exporting.contents import read_about
from evomerge.results.exporting.folder import build
from evomerge.scoring.documents import texts
from evomerge.searching.spaces.operator_genes import Operator, located
from evomerge.studies.candidates import operating

STUDENT = "student"
_ROWS = 4  # texts that a loss is measured on
_MOST = 4096  # tokens of each


def extend(
    model: str, out: Path, options: Mapping[str, Any], progress: Progress, text: str = "python", dtype: str = "auto"
) -> dict[str, Any]:
    """Extends a model's context into a new folder, and measures it before and after.

    Args:
        model: a folder, or a Hub id with optional @revision.
        options: of `operators.context_extension`.
        text: to measure on, see `long_context`.

    Returns:
        plain values: the operator's options, the lengths in tokens, and the mean log-loss in nats per token before
        and after, `inside` the old length and `beyond` it (None where the text or the new length ends before).

    Raises:
        EvomergeError: the model or the options do not do, or `out` cannot be written.
    """
    quiet()
    content, step, source = _text(text), _step("context_extension", options), _source(model)
    survey = survey_models(source, {"model": source}, dtype, progress)
    recipe = _recipe(survey, {"model": 1.0}, step, seed=0)
    operating.check_operators(survey.base, survey.experts, recipe.operators)
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
    """Trains a model on what others answer, into a new folder.

    Args:
        model: a folder, or a Hub id with optional @revision.
        teachers: name -> such a model, of the same shapes and vocabulary. `options` may also name `student`, the
            model as it is.
        options: of `operators.distillation`; paths are relative to the working directory.
        watch: is told of each step.

    Returns:
        plain values: the operator's options and its record: `before` and `after` are losses on texts that it is
        trained on, `loss` is that of each step.

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
    folder = build(recipe, survey, out, progress, watch=watch)
    record = read_about(folder)["training"]["distillation"]
    return {"model": model, "options": step.options, **record}


def _source(model: str) -> Source:
    return relocate(Source.model_validate(parse_source(model)), Path.cwd())


def _step(name: str, options: Mapping[str, Any]) -> OperatorStep:
    """An operator with its options; files are relative to the working directory.

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
    """One model as a merge of itself, with an operator after it."""
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
    return int(model.config.get_text_config().max_position_embeddings)


def _text(text: str) -> str:
    """A text by its name or path.

    Raises:
        ConfigError: there is none.
    """
    try:
        return texts.read_text(text, Path.cwd()).decode("utf-8", "replace")
    except ValueError as error:
        raise ConfigError("--text", [str(error)]) from error


def _losses(folder: Path, dtype: str, content: str, old: int, new: int) -> dict[str, float | None]:
    """A model's mean log-loss, inside the old length and beyond it, on pieces of a text."""
    model, length = load_model(folder, dtype, "cpu"), min(new, _MOST)
    # A token is at least a byte: so much text is enough, and the rest need not be tokenized.
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
    every = torch.cat(losses)
    return float(every.mean()) if len(every) else None
