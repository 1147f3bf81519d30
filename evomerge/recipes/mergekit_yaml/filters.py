"""Filters that name no tensor. mergekit passes them over in silence, and a slip of the pen changes the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evomerge.errors import suggest
from evomerge.models.tensor_names import MadeOf
from evomerge.recipes.mergekit_yaml.tables import Part


def faults(parts: Iterable[Part], made_of: MadeOf, unmerged: Iterable[str]) -> list[str]:
    """The filters that match no tensor of the base's files, one a line.

    Args:
        made_of: tensor that is merged -> the names in the base's files that it is made of.
        unmerged: names of other tensors of the base, which a filter may match.
    """
    names = [name for own in made_of.values() for name in own]
    known = {part for name in names for part in name.split(".") if not part.isdigit()}
    every = [*names, *unmerged]
    return [
        f"{path}: {wanted!r} matches no tensor in the base's files.{suggest(wanted, known)}"
        for path, wanted in _filters(parts).items()
        if not any(wanted in name for name in every)
    ]


def notes(parts: Iterable[Part], made_of: MadeOf, unmerged: Mapping[str, str]) -> list[str]:
    """The filters that match nothing but tensors that are not merged under these names, one a line.

    Args:
        made_of: as in `faults`.
        unmerged: name of another tensor of the base -> why it is not merged, in words.
    """
    names = [name for own in made_of.values() for name in own]
    idle = {
        path: next((name for name in unmerged if wanted in name), None)
        for path, wanted in _filters(parts).items()
        if not any(wanted in name for name in names)
    }
    return [f"{path}: changes nothing for {name}: {unmerged[name]}" for path, name in idle.items() if name]


def _filters(parts: Iterable[Part]) -> dict[str, str]:
    """The path in the file of each filter -> the filter."""
    settings = (setting for part in parts for own in part.levels.values() for setting in own)
    return dict(both for setting in settings for both in setting.filters.items())
