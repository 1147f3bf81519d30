"""Recipes and mergekit configurations read back for building, with the models that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.errors import ConfigError
from evomerge.files import schema, yaml
from evomerge.files.schema import Strict
from evomerge.models import Progress
from evomerge.models.source import SourceField, Vocabulary, relocate
from evomerge.models.survey import Survey, survey_models
from evomerge.recipes import files, mergekit_yaml
from evomerge.recipes import recipe as recipes
from evomerge.recipes.recipe import Recipe


class _Models(Strict):
    """The keys of a recipe file that name its models."""

    base: SourceField
    experts: dict[str, SourceField]
    vocabulary: Vocabulary | None = None


def read_recipe(path: Path, progress: Progress) -> tuple[Recipe, Survey]:
    """Reads a recipe file or a mergekit configuration, and opens its checkpoints.

    Where a recipe file has no `layers` or `dtype`, they are the base's.

    Returns:
        The recipe, in which each source has its hash; and what its checkpoints are.

    Raises:
        ConfigError: the file has faults.
        CheckpointError: a checkpoint is missing, does not fit, or is not the one that the recipe names.
    """
    data = yaml.read_yaml(path)
    if mergekit_yaml.is_one(data):
        return _read_mergekit(path, data, progress)
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
    if faults := recipes.pattern_faults(recipe, survey.names):
        raise ConfigError(str(path), faults)
    return recipe.model_copy(update={"base": survey.base, "experts": dict(sorted(survey.experts.items()))}), survey


def _read_mergekit(path: Path, data: dict[str, Any], progress: Progress) -> tuple[Recipe, Survey]:
    """Reads a mergekit configuration, see `read_recipe`. Its paths are relative to the working directory."""
    config = mergekit_yaml.read(str(path), data)
    base = relocate(config.base, Path.cwd())
    experts = {name: relocate(source, Path.cwd()) for name, source in config.experts.items()}
    survey = survey_models(base, experts, config.dtype or "auto", progress, config.vocabulary)
    recipe = config.recipe(survey.made_of, survey.dtype, survey.tied)
    return recipe.model_copy(update={"base": survey.base, "experts": dict(sorted(survey.experts.items()))}), survey
