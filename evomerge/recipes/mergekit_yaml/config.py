"""A mergekit configuration that was read, and the recipe that it stands for once the base is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge import plugins
from evomerge.errors import ConfigError
from evomerge.models import source, tensor_names
from evomerge.models.source import Source, Vocabulary
from evomerge.models.tensor_names import MadeOf, Place
from evomerge.recipes.mergekit_yaml import filters
from evomerge.recipes.mergekit_yaml.tables import MissingValueError, Part, SlicedModel, SplitValueError
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
        seed: decides the masks of methods that drop elements.
        paths: (parameter, expert or "") -> the path in the file where its value would stand, for errors.
        notes: what stands in the file and changes nothing, one a line, see `passed_over`.
    """

    where: str
    method: str
    base: Source
    experts: dict[str, Source]
    dtype: source.Dtype | None
    vocabulary: Vocabulary | None
    options: dict[str, bool]
    seed: int
    parts: tuple[Part, ...]
    paths: dict[tuple[str, str], str]
    notes: tuple[str, ...]

    def recipe(
        self, places: Mapping[str, Place], made_of: MadeOf, dtype: source.Dtype, unmerged: Iterable[str] = ()
    ) -> Recipe:
        """The recipe that merges the base and the experts as the configuration says.

        Args:
            places: tensor that is merged -> where it sits.
            made_of: tensor that is merged -> the names in the base's files that it is made of, of which filters
                speak.
            dtype: the base's.
            unmerged: names of other tensors of the base, which filters may name without effect.

        Raises:
            ConfigError: the slices are not the base's layers, a filter names no tensor or only a part of one, or a
                tensor has no value.
        """
        layers = tensor_names.layer_count(places)
        if self.parts[-1].stop not in (None, layers):
            path = f"{self.parts[-1].path}.sources[0].layer_range"
            raise ConfigError(
                self.where, [f"{path}: ends at {self.parts[-1].stop}, but the base has {layers} layers"]
            )
        if faults := filters.faults(self.parts, made_of, unmerged):
            raise ConfigError(self.where, faults)
        data = {
            "method": self.method,
            "base": self.base,
            "experts": self.experts,
            "dtype": self.dtype or dtype,
            "layers": layers,
            "seed": self.seed,
            "vocabulary": self.vocabulary,
            "options": self.options,
            "parameters": self._tables(SlicedModel(self.parts, places, layers, made_of)),
        }
        return Recipe.model_validate(data)

    def idle_filters(self, made_of: MadeOf, unmerged: Mapping[str, str]) -> list[str]:
        """The filters that change nothing, see `filters.notes`."""
        return filters.notes(self.parts, made_of, unmerged)

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
            except SplitValueError as error:
                faults.append(error.fault)
                continue
            tables[parameter.name] = {k: row if parameter.per_expert else row[""] for k, row in table.items()}
        if faults:
            raise ConfigError(self.where, faults)
        return tables
