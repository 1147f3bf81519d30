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
        layers, dtype: the base's number of layers and its dtype, for a file that does not say them.

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
    """A recipe as YAML in the short form that people write, with its hash at the top."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    content["parameters"] = {name: _shortened(table) for name, table in recipe.parameters.items()}
    content["options"] = _shortened_options(recipe)
    return yaml.write_yaml({"sha256": recipe.sha256, **{k: v for k, v in content.items() if v not in ([], {})}})


def _shortened(table: Table) -> Any:
    """A table without the keys that stand for everything: `*` if it is the only row, and "" for all experts."""
    rows = {module: row.get("", row) for module, row in table.items()}
    return rows[ANY] if set(rows) == {ANY} else rows


def _shortened_options(recipe: Recipe) -> Any:
    """The options by method; those of the only method without its name."""
    return recipe.options if len(recipe.options) > 1 else next(iter(recipe.options.values()))
