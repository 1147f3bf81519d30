"""The models of a mergekit file: its slices, its base and its experts, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from evomerge import plugins
from evomerge.models.source import Source, Vocabulary
from evomerge.recipes import canonical
from evomerge.recipes.mergekit_yaml.dialects import DIALECTS
from evomerge.recipes.mergekit_yaml.schema import File, ModelEntry, Slice

_IN_PLACE = "evomerge neither stacks nor reorders layers"


class Models:
    """The models of one file. Whatever is wrong with them is noted in `faults`.

    Attributes:
        slices: the slices with their paths in the file. A file with `models` has one, whose path is that of what
            holds `models`: empty, or the module.
        base: `base_model`; None if the file has none.
    """

    def __init__(self, file: File) -> None:
        self.faults: list[str] = []
        self._file = file
        self._path, self._content = file.content
        self._method = file.merge_method
        self._dialect = DIALECTS[self._method]
        self.slices = self._slices()
        self.base = self._base()

    def _slices(self) -> list[tuple[str, Slice]]:
        """The slices with their paths. In a file with `models` the base is added, as mergekit adds it."""
        models, slices = self._content.models, self._content.slices
        twice = self._content is not self._file and (self._file.models or self._file.slices)
        if (models is None) == (slices is None) or twice:
            self.faults.append(f"{self._path}models: give one of `models`, `slices` and `modules`")
            return []
        if slices is not None:
            if not slices:
                self.faults.append(f"{self._path}slices: is empty")
            return [(f"{self._path}slices[{place}]", part) for place, part in enumerate(slices)]
        if not models:
            self.faults.append(f"{self._path}models: is empty")
            return []
        inputs = list(models)
        base = self._file.base_model
        if base is not None and base not in [one.model for one in inputs]:
            inputs.append(ModelEntry(model=base))
        return [(self._path, Slice(sources=inputs))]

    @property
    def whole(self) -> bool:
        """Whether the file merges whole models, and no slices of them."""
        return self._content.models is not None

    def _base(self) -> Source | None:
        """The base, which all slices have to share."""
        base = self.slices[0][1].base_model if self.slices else None
        base = base or self._file.base_model
        self.faults += [
            f"{path}.base_model: is {other}, but that of the first slice is {base}; evomerge takes one base"
            for path, part in self.slices
            if (other := part.base_model or self._file.base_model) != base
        ]
        return base

    def entries(self) -> Iterator[tuple[str, ModelEntry]]:
        """The entries of all slices, each with its path."""
        for path, part in self.slices:
            for place, given in enumerate(part.sources):
                yield self.entry_path(path, place), given

    def entry_path(self, slice_path: str, place: int) -> str:
        """The path of a model's entry in a slice."""
        return f"{slice_path}models[{place}]" if self.whole else f"{slice_path}.sources[{place}]"

    def experts(self) -> dict[str, Source]:
        """Name -> model, for all models but the base; for the base too, where the method takes it as an input."""
        models = list(dict.fromkeys(given.model for _, given in self.entries()))
        return _named(model for model in models if self._dialect.base == "input" or model != self.base)

    def check_models(self, experts: Sequence[Source]) -> None:
        """Checks that the method can merge the base and these experts in all slices."""
        if self._dialect.base == "base" and self.base is None:
            self.faults.append(f"base_model: is missing; {self._method} needs it")
        elif self.slices:
            besides = " besides the base" if self._dialect.base != "input" and self.base else ""
            first = self._entries_path(self.slices[0][0])
            for fault in canonical.expert_faults(self._method, len(experts)):
                text = fault.partition(": ")[2].replace("expert", "model")
                self.faults.append(f"{first}: {text}{besides}")
        for path, part in self.slices:
            self._check_slice(self._entries_path(path), part, experts)

    def _entries_path(self, slice_path: str) -> str:
        return self.entry_path(slice_path, 0).removesuffix("[0]")

    def _check_slice(self, path: str, part: Slice, experts: Sequence[Source]) -> None:
        """Checks that a slice has each model once, and the models that the method needs in every layer."""
        models = [given.model for given in part.sources]
        self.faults += [
            f"{path}[{place}].model: {model} stands twice"
            for place, model in enumerate(models)
            if model in models[:place]
        ]
        if self._dialect.base != "input" and self.base not in (None, *models):
            self.faults.append(f"{path}: lacks the base model {self.base}; list it, without parameters")
        missing = [model for model in experts if model not in models]
        if missing and not _adds_up(self._method):
            self.faults.append(f"{path}: lacks {missing[0]}; {self._method} takes the same models in all layers")

    def check_ranges(self) -> None:
        """Checks that the slices' layers are those of one model, in order."""
        for path, given in self.entries():
            if self.whole and given.layer_range is not None:
                self.faults.append(f"{path}.layer_range: stands in `slices` only; here all layers are merged")
            elif not self.whole and given.layer_range is None:
                self.faults.append(f"{path}.layer_range: is missing")
        reached = 0
        for path, part in self.slices:
            first = part.sources[0].layer_range
            if self.whole or first is None:
                return
            start, stop = first
            if start != reached or stop <= start:
                self.faults.append(
                    f"{path}.sources[0].layer_range: is [{start}, {stop}], but has to go up from {reached}; "
                    f"{_IN_PLACE}"
                )
            self.faults += [
                f"{self.entry_path(path, place)}.layer_range: is {list(given.layer_range)}, but that of sources[0] "
                f"is [{start}, {stop}]; {_IN_PLACE}"
                for place, given in enumerate(part.sources)
                if given.layer_range not in (None, first)
            ]
            reached = stop

    def vocabulary(self) -> tuple[Vocabulary | None, Source]:
        """What to do where vocabularies differ, and the recipe's base.

        In a file without `base_model` the base is the model that the tokenizer is taken from, or else the first
        model.
        """
        key, wanted = "tokenizer_source", self._file.tokenizer_source
        if self._file.tokenizer is not None:
            if wanted is not None:
                self.faults.append("tokenizer: cannot stand beside tokenizer_source")
            key, wanted = "tokenizer.source", self._file.tokenizer.source
        first = next((given.model for _, given in self.entries()), Source(model="?"))
        base = self.base or (wanted if isinstance(wanted, Source) else first)
        if wanted == "base" and self.base is None:
            self.faults.append(f"{key}: is base, but there is no base_model")
        if isinstance(wanted, Source) and wanted != base:
            self.faults.append(f"{key}: is {wanted}; evomerge takes the base model's ({base}), or `union`")
        if wanted is None:
            return None, base
        return "union" if wanted == "union" else "base", base


def _adds_up(method: str) -> bool:
    """Whether a model that is absent from some layers is the same as one of weight 0 there."""
    dialect = DIALECTS[method]
    weighted = "weight" in [parameter.name for parameter in plugins.load("methods", method).PARAMETERS]
    return weighted and "weight" not in dialect.lacking and dialect.base != "optional"


def _named(models: Iterable[Source]) -> dict[str, Source]:
    """Name -> model. A name is the last part of the model's path, made legal and unique."""
    named: dict[str, Source] = {}
    for model in models:
        stem = re.sub(r"[^\w.-]+", "-", Path(model.model).name).strip("-.") or "model"
        names = [stem, *(f"{stem}-{number}" for number in range(2, len(named) + 3))]
        name = next(name for name in names if name not in named and not canonical.name_faults([name]))
        named[name] = model
    return named
