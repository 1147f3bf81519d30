"""Recipes and mergekit configurations read back for building, with the models that they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.errors import ConfigError
from evomerge.files import schema, yaml
from evomerge.files.schema import Strict
from evomerge.models import Progress
from evomerge.models.source import SourceField, Vocabulary, relocate
from evomerge.models.survey import Survey, survey_models
from evomerge.recipes import files, live_names, mergekit_yaml
from evomerge.recipes import recipe as recipes
from evomerge.recipes.recipe import Recipe


class _Models(Strict):
    """The keys of a recipe file that name its models."""

    base: SourceField
    experts: dict[str, SourceField]
    vocabulary: Vocabulary | None = None


def silent(text: str) -> None:
    """Tells nobody."""


def read_recipe(path: Path, progress: Progress, note: Progress = silent) -> tuple[Recipe, Survey]:
    """Reads a recipe file or a mergekit configuration, and opens its checkpoints.

    Where a recipe file has no `layers` or `dtype`, they are the base's.

    Args:
        note: is told what stands in a mergekit configuration and changes nothing.

    Returns:
        The recipe, in which each source has its hash; and what its checkpoints are.

    Raises:
        ConfigError: the file has faults.
        CheckpointError: a checkpoint is missing, does not fit, or is not the one that the recipe names.
    """
    data = yaml.read_yaml(path)
    if reason := mergekit_yaml.other_tool(data):
        raise ConfigError(str(path), [reason])
    if mergekit_yaml.is_one(data):
        return read_mergekit(str(path), data, progress, note)
    try:
        models = _Models.model_validate({key: data[key] for key in _Models.model_fields if key in data})
    except ValidationError as error:
        raise ConfigError(str(path), schema.faults_of(error)) from error
    folder = path.resolve().parent
    experts = {name: relocate(source, folder) for name, source in models.experts.items()}
    survey = survey_models(
        relocate(models.base, folder),
        experts,
        str(data.get("dtype", "auto")),
        progress,
        models.vocabulary,
    )
    recipe = files.read_recipe_file(path, layers=survey.layers, dtype=survey.dtype)
    if recipe.layers != survey.layers:
        raise ConfigError(str(path), [f"layers: is {recipe.layers}, but the base has {survey.layers}"])
    recipe, faults = live_names.with_live_names(recipe, survey.places, survey.made_of)
    if faults := faults or recipes.pattern_faults(recipe, survey.names):
        raise ConfigError(str(path), faults)
    return recipe.model_copy(update={"base": survey.base, "experts": dict(sorted(survey.experts.items()))}), survey


def read_mergekit(
    where: str, data: Mapping[str, Any], progress: Progress, note: Progress = silent
) -> tuple[Recipe, Survey]:
    """Reads a mergekit configuration, see `read_recipe`. Its paths are relative to the working directory.

    Args:
        where: the file, for errors.
        data: its content.
    """
    config = mergekit_yaml.read(where, data)
    base = relocate(config.base, Path.cwd())
    experts = {name: relocate(source, Path.cwd()) for name, source in config.experts.items()}
    survey = survey_models(base, experts, config.dtype or "auto", progress, config.vocabulary)
    recipe = config.recipe(survey.places, survey.made_of, survey.dtype, survey.unmerged)
    for line in (*config.notes, *config.idle_filters(survey.made_of, survey.unmerged)):
        note(f"{where}: {line}")
    return recipe.model_copy(update={"base": survey.base, "experts": dict(sorted(survey.experts.items()))}), survey
