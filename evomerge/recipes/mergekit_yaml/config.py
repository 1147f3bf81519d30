"""A mergekit configuration that was read, and the recipe that it stands for once the base is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from evomerge import plugins
from evomerge.errors import ConfigError
from evomerge.models import source, tensor_names
from evomerge.models.source import Source, Vocabulary
from evomerge.recipes.mergekit_yaml.tables import MissingValueError, Part, SlicedModel
from evomerge.recipes.recipe import Recipe


@dataclass(frozen=True)
class Config:
    """A mergekit configuration without what only the base tells: the number of layers and the tensors' names.

    Attributes:
        where: the file, for errors.
        experts: name -> model, of all models that are merged into the base; for methods without a base, all models.
        dtype: None takes the base's.
        options: all options of the method, under our names.
        parts: the slices; a configuration with `models` has one.
        paths: (parameter, expert or "") -> the path in the file where its value would stand, for errors.
    """

    where: str
    method: str
    base: Source
    experts: dict[str, Source]
    dtype: source.Dtype | None
    vocabulary: Vocabulary | None
    options: dict[str, bool]
    parts: tuple[Part, ...]
    paths: dict[tuple[str, str], str]

    def recipe(self, names: Iterable[str], dtype: source.Dtype) -> Recipe:
        """The recipe that merges the base and the experts as the configuration says.

        Args:
            names: the base's tensor names.
            dtype: the base's.

        Raises:
            ConfigError: the slices are not the base's layers, or a tensor has no value.
        """
        places = tensor_names.places(names)
        layers = tensor_names.layer_count(places)
        if self.parts[-1].stop not in (None, layers):
            path = f"slices[{len(self.parts) - 1}].sources[0].layer_range"
            raise ConfigError(
                self.where, [f"{path}: ends at {self.parts[-1].stop}, but the base has {layers} layers"]
            )
        data = {
            "method": self.method,
            "base": self.base,
            "experts": self.experts,
            "dtype": self.dtype or dtype,
            "layers": layers,
            "vocabulary": self.vocabulary,
            "options": self.options,
            "parameters": self._tables(SlicedModel(self.parts, places, layers)),
        }
        return Recipe.model_validate(data)

    def _tables(self, model: SlicedModel) -> dict[str, Any]:
        """The recipe's parameters, by name."""
        tables: dict[str, Any] = {}
        faults = []
        for parameter in plugins.load("methods", self.method).PARAMETERS:
            keys = list(self.experts) if parameter.per_expert else [""]
            try:
                table = model.table(parameter.name, keys)
            except MissingValueError as error:
                faults.append(
                    f"{self.paths[parameter.name, error.expert]}: no filter matches {error.tensor}; end with a "
                    "`value` that has no filter"
                )
                continue
            tables[parameter.name] = {k: row if parameter.per_expert else row[""] for k, row in table.items()}
        if faults:
            raise ConfigError(self.where, faults)
        return tables
