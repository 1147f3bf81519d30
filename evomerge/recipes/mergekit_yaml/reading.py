"""Reads mergekit's merge configurations as recipes of equal meaning; refuses by its key what a recipe cannot say.

```yaml
merge_method: ties
base_model: org/base
models:
  - {model: org/maths, parameters: {weight: 0.6, density: [0.3, 0.7]}}                     # a gradient
  - {model: org/code@v2, parameters: {weight: [{filter: mlp, value: 0.8}, {value: 0.4}]}}  # a filter
dtype: bfloat16
```

Slices have to be the layers of one model in their order. `int8_mask` changes no result and is passed over, and so
are `name` and `chat_template: auto`: the merged model has the base's template. Relative paths are relative to the
working directory, as in mergekit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge import plugins
from evomerge.errors import ConfigError
from evomerge.models import source, tensor_names
from evomerge.models.source import Source, Vocabulary
from evomerge.recipes import canonical
from evomerge.recipes.mergekit_yaml.dialects import DIALECTS
from evomerge.recipes.mergekit_yaml.parameters import Parameters
from evomerge.recipes.mergekit_yaml.schema import File, Input, Slice, faults_of
from evomerge.recipes.mergekit_yaml.values import MissingValueError, Model, Part
from evomerge.recipes.recipe import Recipe


def is_one(data: Mapping[str, Any]) -> bool:
    """Whether a file's content is a mergekit configuration and no recipe."""
    return "merge_method" in data and "method" not in data


@dataclass(frozen=True)
class Config:
    """A mergekit configuration, but for what only the base tells: the number of layers and the tensors' names.

    Attributes:
        where: the file, for errors.
        experts: all that is merged into the base; for methods without one, all models.
        dtype: None takes the base's.
        options: all options of the method, under our names.
        parts: the slices; one for a configuration with `models`.
        paths: (parameter, expert or "") -> where in the file it would stand, for errors.
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
        model = Model(self.parts, places, layers)
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
        data = {
            "method": self.method,
            "base": self.base,
            "experts": self.experts,
            "dtype": self.dtype or dtype,
            "layers": layers,
            "vocabulary": self.vocabulary,
            "options": self.options,
            "parameters": tables,
        }
        return Recipe.model_validate(data)


def read(where: str, data: Mapping[str, Any]) -> Config:
    """A mergekit configuration from a file's content.

    Raises:
        ConfigError: with every fault of the file.
    """
    try:
        file = File.model_validate(data)
    except ValidationError as error:
        raise ConfigError(where, faults_of(error)) from error
    reader = _Reader(file)
    config = reader.config(where)
    if reader.faults:
        raise ConfigError(where, reader.faults)
    return config


class _Reader:
    """Goes through a file once and notes what is wrong with it in `faults`."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.faults: list[str] = []
        self.method = file.merge_method
        self.dialect = DIALECTS[self.method]
        self.slices = self._slices()
        self.base_model = self._base_model()

    def config(self, where: str) -> Config:
        """What the file says; of no use if there are faults."""
        self._check_ranges()
        vocabulary, base = self._vocabulary()
        experts = self._experts()
        self._check_models(list(experts.values()))
        parameters = Parameters(self.method)
        paths = self._paths(parameters, experts)
        parts = self._parts(parameters, experts, paths)
        options = parameters.options(
            self.file.parameters, [(f"{path}.parameters", part.parameters) for path, part in self.slices]
        )
        if "task_vectors" in options:
            options["task_vectors"] = self.dialect.base == "optional" and self.base_model is not None
        self.faults = list(dict.fromkeys([*self.faults, *parameters.faults]))
        return Config(
            where=where,
            method=self.method,
            base=base,
            experts=experts,
            dtype=self.file.out_dtype or self.file.dtype,
            vocabulary=vocabulary,
            options=options,
            parts=parts,
            paths=paths,
        )

    # --- models ---

    def _slices(self) -> list[tuple[str, Slice]]:
        """The slices with their paths. A file with `models` has one, whose path is empty, and the base is in it."""
        if (self.file.models is None) == (self.file.slices is None):
            self.faults.append("models: give either `models` or `slices`")
            return []
        if self.file.slices is not None:
            if not self.file.slices:
                self.faults.append("slices: is empty")
            return [(f"slices[{place}]", part) for place, part in enumerate(self.file.slices)]
        if not self.file.models:
            self.faults.append("models: is empty")
            return []
        inputs = list(self.file.models)
        base = self.file.base_model
        if base is not None and base not in [one.model for one in inputs]:
            inputs.append(Input(model=base))
        return [("", Slice(sources=inputs))]

    def _base_model(self) -> Source | None:
        found = self.slices[0][1].base_model if self.slices else None
        found = found or self.file.base_model
        self.faults += [
            f"{path}.base_model: is {other}, but that of the first slice is {found}; evomerge takes one base"
            for path, part in self.slices
            if (other := part.base_model or self.file.base_model) != found
        ]
        return found

    def _inputs(self) -> Iterator[tuple[str, Input]]:
        """All models of all slices, each with its path."""
        for path, part in self.slices:
            for place, given in enumerate(part.sources):
                yield _path(path, place), given

    def _experts(self) -> dict[str, Source]:
        """Name -> model, of all models but the base; where the base is an input like others, of it too."""
        models = list(dict.fromkeys(given.model for _, given in self._inputs()))
        return _named(model for model in models if self.dialect.base == "input" or model != self.base_model)

    def _check_models(self, experts: Sequence[Source]) -> None:
        if self.dialect.base == "base" and self.base_model is None:
            self.faults.append(f"base_model: is missing; {self.method} needs it")
        elif self.slices:
            besides = " besides the base" if self.dialect.base != "input" and self.base_model else ""
            first = "models" if self.slices[0][0] == "" else "slices[0].sources"
            for fault in canonical.expert_faults(self.method, len(experts)):
                text = fault.partition(": ")[2].replace("expert", "model")
                self.faults.append(f"{first}: {text}{besides}")
        for path, part in self.slices:
            self._check_slice(f"{path}.sources" if path else "models", part, experts)

    def _check_slice(self, path: str, part: Slice, experts: Sequence[Source]) -> None:
        models = [given.model for given in part.sources]
        self.faults += [
            f"{path}[{place}].model: {model} stands twice"
            for place, model in enumerate(models)
            if model in models[:place]
        ]
        if self.dialect.base != "input" and self.base_model not in (None, *models):
            self.faults.append(f"{path}: lacks the base model {self.base_model}; list it, without parameters")
        missing = [model for model in experts if model not in models]
        if missing and not _adds_up(self.method):
            self.faults.append(f"{path}: lacks {missing[0]}; {self.method} takes the same models in all layers")

    def _check_ranges(self) -> None:
        """That the slices' layers are those of one model, in order."""
        for path, given in self._inputs():
            if self.file.models is not None and given.layer_range is not None:
                self.faults.append(f"{path}.layer_range: stands in `slices` only; here all layers are merged")
            elif self.file.models is None and given.layer_range is None:
                self.faults.append(f"{path}.layer_range: is missing")
        reached = 0
        for path, part in self.slices:
            first = part.sources[0].layer_range
            if not path or first is None:
                return
            start, stop = first
            if start != reached or stop <= start:
                self.faults.append(
                    f"{path}.sources[0].layer_range: is [{start}, {stop}], but has to go up from {reached}; "
                    f"{_IN_PLACE}"
                )
            self.faults += [
                f"{_path(path, place)}.layer_range: is {list(given.layer_range)}, but that of sources[0] is "
                f"[{start}, {stop}]; {_IN_PLACE}"
                for place, given in enumerate(part.sources)
                if given.layer_range not in (None, first)
            ]
            reached = stop

    def _vocabulary(self) -> tuple[Vocabulary | None, Source]:
        """What to do about vocabularies; and the base, which in a file without `base_model` is the model that the
        tokenizer is taken of, or else the first one."""
        key, wanted = "tokenizer_source", self.file.tokenizer_source
        if self.file.tokenizer is not None:
            if wanted is not None:
                self.faults.append("tokenizer: cannot stand beside tokenizer_source")
            key, wanted = "tokenizer.source", self.file.tokenizer.source
        first = next((given.model for _, given in self._inputs()), Source(model="?"))
        base = self.base_model or (wanted if isinstance(wanted, Source) else first)
        if wanted == "base" and self.base_model is None:
            self.faults.append(f"{key}: is base, but there is no base_model")
        if isinstance(wanted, Source) and wanted != base:
            self.faults.append(f"{key}: is {wanted}; evomerge takes the base model's ({base}), or `union`")
        if wanted is None:
            return None, base
        return "union" if wanted == "union" else "base", base

    # --- parameters ---

    def _parts(
        self, parameters: Parameters, experts: Mapping[str, Source], paths: Mapping[tuple[str, str], str]
    ) -> tuple[Part, ...]:
        common = parameters.level("parameters", self.file.parameters)
        parts = []
        for path, part in self.slices:
            here = parameters.level(f"{path}.parameters", part.parameters)
            own = {}
            for place, given in enumerate(part.sources):
                own[given.model] = parameters.level(
                    f"{_path(path, place)}.parameters", given.parameters, of_model=True
                )
            levels = {}
            for name, expert in paths:
                model = experts[expert] if expert else next(iter(experts.values()), None)
                of_model = own.get(model, {}) if model else {}
                levels[name, expert] = parameters.levels(
                    name, [of_model, here, common], absent=bool(expert) and model not in own
                )
                if not levels[name, expert]:
                    self.faults.append(f"{paths[name, expert]}: is missing; {self.method} needs it")
            start, stop = part.sources[0].layer_range or (0, None)
            parts.append(Part(start, stop, levels))
        return tuple(parts)

    def _paths(self, parameters: Parameters, experts: Mapping[str, Source]) -> dict[tuple[str, str], str]:
        """(parameter, expert or "") -> where it would stand, for all parameters that the method has with us."""
        found = {}
        for name, parameter in parameters.known.items():
            for expert in experts if parameter.per_expert else [""]:
                at = next((path for path, given in self._inputs() if given.model == experts.get(expert)), "")
                if (
                    self.file.models is not None
                    and expert
                    and experts[expert] not in [given.model for given in self.file.models]
                ):
                    at = ""  # the base, which mergekit lists by itself
                found[name, expert] = f"{at}.parameters.{name}".lstrip(".")
        return found


_IN_PLACE = "evomerge neither stacks nor reorders layers"


def _path(slice_path: str, place: int) -> str:
    """The path of a slice's model; a file with `models` has one slice, without a path."""
    return f"{slice_path}.sources[{place}]" if slice_path else f"models[{place}]"


def _adds_up(method: str) -> bool:
    """Whether a model that is absent from some layers is the same as one of weight 0 there."""
    dialect = DIALECTS[method]
    weighted = "weight" in [parameter.name for parameter in plugins.load("methods", method).PARAMETERS]
    return weighted and "weight" not in dialect.lacking and dialect.base != "optional"


def _named(models: Iterable[Source]) -> dict[str, Source]:
    """Names for experts: the last part of each one's path, made legal and unique."""
    named: dict[str, Source] = {}
    for model in models:
        stem = re.sub(r"[^\w.-]+", "-", Path(model.model).name).strip("-.") or "model"
        names = [stem, *(f"{stem}-{number}" for number in range(2, len(named) + 3))]
        name = next(name for name in names if name not in named and not canonical.name_faults([name]))
        named[name] = model
    return named
