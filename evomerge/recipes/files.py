"""Recipes as YAML that a person reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.errors import ConfigError
from evomerge.files import yaml
from evomerge.files.schema import faults_of
from evomerge.models.source import relocate
from evomerge.recipes.canonical import ANY, Table
from evomerge.recipes.recipe import Recipe


def read_recipe_file(path: Path, layers: int | None = None, dtype: str | None = None) -> Recipe:
    """The recipe in a file. Relative model paths are relative to the file.

    Args:
        layers, dtype: the base's, for a file that does not say.

    Raises:
        ConfigError: with every fault of the file.
    """
    data = yaml.read_yaml(path)
    data.pop("sha256", None)
    for key, value in (("layers", layers), ("dtype", dtype)):
        if value is not None:
            data.setdefault(key, value)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError(str(path), faults_of(error)) from error
    folder = path.resolve().parent
    return recipe.model_copy(
        update={
            "base": relocate(recipe.base, folder),
            "experts": {name: relocate(source, folder) for name, source in recipe.experts.items()},
        }
    )


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, with its hash on top, in the short form that people write."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    content["parameters"] = {name: _shortened(table) for name, table in recipe.parameters.items()}
    content["options"] = _shortened_options(recipe)
    return yaml.write_yaml({"sha256": recipe.sha256, **{k: v for k, v in content.items() if v not in ([], {})}})


def _shortened(table: Table) -> Any:
    """A table without the keys that stand for everything: `*` alone, and "" for all experts together."""
    rows = {module: row.get("", row) for module, row in table.items()}
    return rows[ANY] if set(rows) == {ANY} else rows


def _shortened_options(recipe: Recipe) -> Any:
    return recipe.options if len(recipe.options) > 1 else next(iter(recipe.options.values()))
