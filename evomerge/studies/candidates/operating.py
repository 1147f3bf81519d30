"""A recipe's operators: whether they fit a model, which texts it reads after them, and which files they leave."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge import operators
from evomerge.errors import ConfigError, suggest
from evomerge.models.source import Source, Vocabulary
from evomerge.recipes.recipe import Corpus, OperatorStep, Recipe

if TYPE_CHECKING:
    from evomerge.models.survey import Survey

_WHOLE = 1 << 30  # tokens of a row that holds any text whole


def check_operators(base: Source, experts: Iterable[str], steps: Sequence[OperatorStep]) -> None:
    """Refuses operators that cannot act on a model.

    Training operators are checked last, on the model as the pure operators without faults leave it.

    Args:
        base: the base, whose config the merged model has.
        experts: the experts' names.
        steps: the operators with their options, in any order.

    Raises:
        ConfigError: with the faults of all operators.
    """
    faults: list[str] = []
    names, sound = list(experts), list[OperatorStep]()
    config = _config(base) if steps else None
    for step in sorted(steps, key=trains):
        operator = operators.load(step.name)
        options = operator.Options.model_validate(step.options)
        if operator.TRAINING:
            wrong = operator.check(options, _extended(config, longest_text(base, sound)))
            wrong += _teacher_faults(operator.teachers(options), names)
        else:
            wrong = operator.check(options, config)
            sound += [] if wrong else [step]
        faults += [line for line in (f"{step.name}.{one}" for one in wrong) if line not in faults]
    if faults:
        raise ConfigError("operators", faults)


def _teacher_faults(teachers: Collection[str], experts: Sequence[str]) -> list[str]:
    """The faults of the names of the models to learn from; [] if they are right."""
    models = ["base", *experts]
    faults = [
        f"teachers: there is no model {name!r}.{suggest(name, models)}"
        for name in sorted(set(teachers) - set(models))
    ]
    if "base" in experts:
        faults.insert(0, "teachers: base means the base, but an expert is called so; name the expert otherwise")
    return faults


def _extended(config: Any, length: int | None) -> Any:
    """A copy of a transformers config whose model reads texts of `length` tokens; None leaves its own length."""
    extended = copy.deepcopy(config)
    if length is not None:
        extended.get_text_config().max_position_embeddings = length
    return extended


def check_texts(survey: Survey, vocabulary: Vocabulary | None, files: Mapping[str, Corpus]) -> None:
    """Refuses texts to learn from that hold a token which the merged model has no row for.

    Args:
        survey: what the models are.
        vocabulary: what is done where their vocabularies differ.
        files: what names a file in messages -> the file.

    Raises:
        ConfigError: with the faults of all files.
    """
    from evomerge.models.family import Inputs
    from evomerge.models.known_tokens import rows_of_inputs
    from evomerge.operators.training import corpus

    inputs = Inputs(survey.base, survey.experts, vocabulary)
    rows, tokenizer = rows_of_inputs(inputs), inputs.tokenizer()
    faults = []
    for name, file in files.items():
        try:
            path = Path(file.path)
            corpus.check_tokens(path, corpus.rows(path, tokenizer, _WHOLE), tokenizer, rows)
        except ConfigError as error:
            faults += [f"{name}: {error}"]
    if faults:
        raise ConfigError("operators", faults)


def longest_text(base: Source, steps: Sequence[OperatorStep]) -> int | None:
    """The longest text, in tokens, that operators make a model fit for; None if they do not change that length.

    Args:
        steps: operators that `check_operators` has nothing against.
    """
    config = _config(base) if steps else None
    reaches = []
    for step in steps:
        operator = operators.load(step.name)
        reaches.append(operator.reach(operator.Options.model_validate(step.options), config))
    return max((reach for reach in reaches if reach is not None), default=None)


def _config(base: Source) -> Any:
    """The transformers config of the base."""
    from evomerge.models import checkpoints
    from evomerge.models.loading import read_config

    return read_config(checkpoints.locate(base, "base"), "base", trust=base.trusted)


def delta_file(recipe: Recipe, position: int) -> str:
    """The name of the file that the training operator at a position of the recipe leaves.

    The file is named by the sha256 of its tensors where the recipe has that, else by the sha256 of the recipe up to
    this operator, which decides them.
    """
    return f"{recipe.operators[position].delta or recipe_until(recipe, position).sha256}.safetensors"


def recipe_until(recipe: Recipe, position: int) -> Recipe:
    """The recipe with its operators up to and including the one at a position."""
    return recipe.model_copy(update={"operators": recipe.operators[: position + 1]})


def trains(step: OperatorStep) -> bool:
    """Whether a recipe's operator is a training one."""
    return operators.load(step.name).TRAINING
