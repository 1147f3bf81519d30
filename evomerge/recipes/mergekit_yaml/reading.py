"""Reads mergekit's merge configurations as recipes of equal meaning; refuses by its key what a recipe cannot say.

```yaml
merge_method: ties
base_model: org/base
models:
  - {model: org/maths, parameters: {weight: 0.6, density: [0.3, 0.7]}}                     # a gradient
  - {model: org/code@v2, parameters: {weight: [{filter: mlp, value: 0.8}, {value: 0.4}]}}  # a filter
dtype: bfloat16
```

Slices have to be the layers of one model in their order. All may stand in `modules: {default: ...}`. What mergekit
knows and passes over is passed over and noted, see `passed_over`; `name` and `chat_template: auto` are passed over
silently, because the merged model has the base's template. Relative paths are relative to the working directory, as
in mergekit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from evomerge.errors import ConfigError
from evomerge.models.source import Source
from evomerge.recipes.mergekit_yaml import passed_over
from evomerge.recipes.mergekit_yaml.config import Config
from evomerge.recipes.mergekit_yaml.dialects import DIALECTS
from evomerge.recipes.mergekit_yaml.models import Models
from evomerge.recipes.mergekit_yaml.parameters import Level, LevelSettings, Parameters
from evomerge.recipes.mergekit_yaml.schema import File, Slice, faults_of
from evomerge.recipes.mergekit_yaml.tables import Part


def is_one(data: Mapping[str, Any]) -> bool:
    """Whether a file's content is a mergekit configuration and no recipe."""
    return "merge_method" in data and "method" not in data


def other_tool(data: Mapping[str, Any]) -> str | None:
    """Why a file's content is none of ours, if it is a configuration of another of mergekit's tools."""
    experts = data.get("experts")
    sources = experts if isinstance(experts, list) else []
    if "gate_mode" in data or any(isinstance(one, Mapping) and "source_model" in one for one in sources):
        return (
            "is a configuration of mergekit-moe, which puts whole models side by side as the experts of a mixture; "
            "evomerge merges models of one architecture into one of it"
        )
    if "genome" in data and "tasks" in data:
        return "is a configuration of mergekit-evolve; write an experiment for it, see docs/mergekit.md"
    return None


def read(where: str, data: Mapping[str, Any]) -> Config:
    """A mergekit configuration from a file's content.

    Raises:
        ConfigError: with every fault of the file.
    """
    idle = [key for key in data if key in passed_over.AT_THE_TOP]
    try:
        file = File.model_validate({key: value for key, value in data.items() if key not in idle})
    except ValidationError as error:
        raise ConfigError(where, faults_of(error)) from error
    reader = _Reader(file)
    reader.pass_over(idle)
    config = reader.config(where)
    if faults := reader.faults():
        raise ConfigError(where, faults)
    return config


class _Reader:
    """Goes through a file once."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._models = Models(file)
        self._parameters = Parameters(file.merge_method)

    def pass_over(self, keys: Iterable[str]) -> None:
        """Notes keys of the file that change nothing."""
        for key in keys:
            self._parameters.pass_over(key, key, set())

    def faults(self) -> list[str]:
        """What `config` found wrong with the file, each fault once."""
        return list(dict.fromkeys([*self._models.faults, *self._parameters.faults]))

    def config(self, where: str) -> Config:
        """The file's content. It is of no use if there are faults."""
        models = self._models
        models.check_ranges()
        vocabulary, base = models.vocabulary()
        experts = models.experts()
        models.check_models(list(experts.values()))
        paths = self._paths(experts)
        parts = self._parts(experts, paths)
        return Config(
            where=where,
            method=self._file.merge_method,
            base=base,
            experts=experts,
            dtype=self._file.out_dtype or self._file.dtype,
            vocabulary=vocabulary,
            parts=parts,
            options=self._options(),
            seed=self._file.random_seed or 0,
            paths=paths,
            notes=self._parameters.notes.lines(),
        )

    def _everywhere(self) -> list[Level]:
        """The `parameters` that hold for all slices: those of the file, then those of its module."""
        levels = [("parameters", self._file.parameters)]
        path, content = self._file.content
        return levels + ([(f"{path}parameters", content.parameters)] if path else [])

    def _options(self) -> dict[str, bool]:
        """All options of the method, under our names."""
        slices = [(f"{path}.parameters", part.parameters) for path, part in self._models.slices]
        options = self._parameters.options(self._everywhere(), slices)
        if "task_vectors" in options:
            based = DIALECTS[self._file.merge_method].base == "optional"
            options["task_vectors"] = based and self._models.base is not None
        return options

    def _parts(self, experts: Mapping[str, Source], paths: Mapping[tuple[str, str], str]) -> tuple[Part, ...]:
        """The slices with the settings of all parameters."""
        common = [self._parameters.level(*level) for level in reversed(self._everywhere())]
        return tuple(self._part(path, part, common, experts, paths) for path, part in self._models.slices)

    def _part(
        self,
        path: str,
        part: Slice,
        common: Sequence[LevelSettings],
        experts: Mapping[str, Source],
        paths: Mapping[tuple[str, str], str],
    ) -> Part:
        """One slice with the settings of all parameters.

        Args:
            path: the slice's path in the file.
            common: the settings that hold for all slices, those that count first in front.
        """
        here = self._parameters.level(f"{path}.parameters", part.parameters)
        own = {
            entry.model: self._parameters.level(
                f"{self._models.entry_path(path, place)}.parameters",
                entry.parameters,
                of_model=True,
                of_base=entry.model not in experts.values(),
            )
            for place, entry in enumerate(part.sources)
        }
        levels = {}
        for name, expert in paths:
            model = experts[expert] if expert else next(iter(experts.values()), None)
            of_model = own.get(model, {}) if model else {}
            levels[name, expert] = self._parameters.levels(
                name, [of_model, here, *common], absent=bool(expert) and model not in own
            )
            if not levels[name, expert]:
                fault = f"{paths[name, expert]}: is missing; {self._file.merge_method} needs it"
                self._models.faults.append(fault)
        start, stop = part.sources[0].layer_range or (0, None)
        return Part(start, stop, levels, path)

    def _paths(self, experts: Mapping[str, Source]) -> dict[tuple[str, str], str]:
        """(parameter, expert or "") -> where its value would stand, for all of our method's parameters."""
        # The base may be an expert without an entry, which mergekit lists by itself.
        models = self._file.content[1].models
        listed = None if models is None else [entry.model for entry in models]
        entries = [
            (path, entry) for path, entry in self._models.entries() if listed is None or entry.model in listed
        ]
        paths = {}
        for name, parameter in self._parameters.known.items():
            for expert in experts if parameter.per_expert else [""]:
                at = next((path for path, entry in entries if entry.model == experts.get(expert)), "")
                paths[name, expert] = f"{at}.parameters.{name}".lstrip(".")
        return paths
