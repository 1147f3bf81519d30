"""The operators of a recipe on a live model: checks, order, and the files that training leaves."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import AutoConfig

from evomerge import plugins
from evomerge.errors import ConfigError, suggest
from evomerge.models import checkpoints
from evomerge.models.loading import loading
from evomerge.models.source import Source
from evomerge.recipes.recipe import OperatorStep, Recipe

# --- operators ---------------------------------------------------------------------------------------------


def check_operators(base: Source, experts: Iterable[str], steps: Sequence[OperatorStep]) -> None:
    """Refuses operators that cannot act on a model.

    Raises:
        ConfigError: with all their faults.
    """
    faults: list[str] = []
    models, sound = ["base", *experts], list[OperatorStep]()
    config = _config(base) if steps else None
    for step in sorted(steps, key=trains):
        operator = plugins.load("operators", step.name)
        options = operator.Options.model_validate(step.options)
        if operator.TRAINING:
            wrong = list(operator.check(options, _extended(config, longest_text(base, sound))))
            if "base" in models[1:]:
                wrong.append("teachers: base means the base, but an expert is called so; name the expert otherwise")
            wrong += [
                f"teachers: there is no model {name!r}.{suggest(name, models)}"
                for name in sorted(operator.teachers(options) - set(models))
            ]
        else:
            wrong = list(operator.check(options, config))
            sound += [] if wrong else [step]
        faults += [line for line in (f"{step.name}.{one}" for one in wrong) if line not in faults]
    if faults:
        raise ConfigError("operators", faults)


def _extended(config: Any, length: int | None) -> Any:
    """A config as it is after a model's context was extended: what is trained then may read as far."""
    found = copy.deepcopy(config)
    if length is not None:
        found.get_text_config().max_position_embeddings = length
    return found


def longest_text(base: Source, steps: Sequence[OperatorStep]) -> int | None:
    """The longest text, in tokens, that sound operators make a model fit for; None if they change nothing."""
    config = _config(base) if steps else None
    reaches = []
    for step in steps:
        operator = plugins.load("operators", step.name)
        reaches.append(operator.reach(operator.Options.model_validate(step.options), config))
    return max((reach for reach in reaches if reach is not None), default=None)


def _config(base: Source) -> Any:
    folder = checkpoints.locate(base, "base")
    with loading(folder, "base"):
        return AutoConfig.from_pretrained(folder)


def delta_file(recipe: Recipe, position: int) -> str:
    """The name of what the training operator at a position leaves: by its content where that is known, else by all
    that goes into it."""
    return f"{recipe.operators[position].delta or recipe_until(recipe, position).sha256}.safetensors"


def recipe_until(recipe: Recipe, position: int) -> Recipe:
    """The recipe with its operators up to a position, that included."""
    return recipe.model_copy(update={"operators": recipe.operators[: position + 1]})


def trains(step: OperatorStep) -> bool:
    """Whether an operator is one that changes weights by training."""
    return bool(plugins.load("operators", step.name).TRAINING)
