"""One model of a family: what its headers say, before any tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.errors import CheckpointError
from evomerge.models import adapter_settings, adapters, checkpoints
from evomerge.models.adapters import Adapter
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.loading import empty_model
from evomerge.models.source import Source
from evomerge.models.tensor_names import Shapes
from evomerge.models.weight_files import has_weight_files


@dataclass
class Input:
    """One model of a family as its headers describe it.

    Attributes:
        where: what names the model in a person's file, for messages.
        folder: the local folder of `source`.
        held: the weights in the folder; for an adapter, the adapter's own tensors.
        shapes, dtypes: those of the tensors that the model will have, before vocabularies are matched.
        adapter: what the model does to the base, if it is an adapter.
        converts: whether transformers makes its tensors out of those of the folder.
        unbuilt: the tensors of the folder that the model's class does not build.
        renamed: module of its own class -> module of the live model that has the same part, where the names differ.
        notes: what people should know of how its folder is read.
    """

    where: str
    folder: Path
    source: Source
    held: Checkpoint
    shapes: Shapes
    dtypes: Mapping[str, str]
    adapter: Adapter | None = None
    converts: bool = False
    unbuilt: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def empty(self) -> Any:
        """The model that the folder's own config describes, without weights."""
        return empty_model(self.folder, self.where, trust=self.source.trusted)

    def live_name(self, name: str) -> str:
        """The live model's name of a tensor that has this name in the input's own class."""
        for own, live in self.renamed.items():
            if name.startswith(f"{own}."):
                return live + name[len(own) :]
        return name

    def file(self, name: str) -> Path:
        """The file that a tensor comes from; the folder, if the tensor is not simply copied from one file."""
        return self.held.file(name) if name in self.held else self.folder


def find_input(source: Source, where: str) -> Input:
    """A model or an adapter by its source. Only an expert may be an adapter.

    A folder with weights of its own is a model of these weights, also where an adapter lies beside them.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    folder = checkpoints.locate(source, where)
    configured = (folder / adapter_settings.CONFIG).is_file()
    whole = has_weight_files(folder)
    adapter = configured and not whole and where.startswith("experts.")
    if adapter and not (folder / adapters.WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{where}: {folder} is an adapter with pickled weights, and evomerge reads none; save it again "
            "with a recent peft"
        )
    held = Checkpoint(folder, where, single=adapters.WEIGHTS if adapter else None)
    notes = [] if held.note is None else [held.note]
    if configured and whole:
        first = held.file(next(iter(held))).name
        notes.append(
            f"{where}: {folder} has {adapter_settings.CONFIG} beside {first}; the weights are taken as they are, "
            "and the adapter is passed over, which transformers would add to them: if they are not merged with it, "
            "give the adapter in a folder of its own, else remove its files"
        )
    return Input(where, folder, source, held, held.shapes, held.dtypes, notes=tuple(notes))
