"""Filters that name no tensor. mergekit passes them over in silence, so that a slip of the pen changes the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evomerge.errors import suggest
from evomerge.models.file_names import MadeOf
from evomerge.recipes.mergekit_yaml.tables import Part


def faults(parts: Iterable[Part], made_of: MadeOf, tied: Iterable[str]) -> list[str]:
    """The filters that match no tensor of the base's files, one a line.

    Args:
        made_of: the live model's tensors -> the names in the base's files that they are made of.
        tied: the second names of tied tensors, which a filter may match.
    """
    names = [name for own in made_of.values() for name in own]
    known = {part for name in names for part in name.split(".") if not part.isdigit()}
    every = [*names, *tied]
    return [
        f"{path}: {wanted!r} matches no tensor in the base's files.{suggest(wanted, known)}"
        for path, wanted in _filters(parts).items()
        if not any(wanted in name for name in every)
    ]


def notes(parts: Iterable[Part], made_of: MadeOf, tied: Mapping[str, str]) -> list[str]:
    """The filters that match nothing but the second name of a tied tensor, which goes by its first name, one a line.

    Args:
        made_of: as in `faults`.
        tied: second name -> first name.
    """
    names = [name for own in made_of.values() for name in own]
    return [
        f"{path}: changes nothing, because {second} is tied to {first}"
        for path, wanted in _filters(parts).items()
        if not any(wanted in name for name in names)
        for second, first in tied.items()
        if wanted in second
    ]


def _filters(parts: Iterable[Part]) -> dict[str, str]:
    """The path in the file of each filter -> the filter."""
    settings = (setting for part in parts for own in part.levels.values() for setting in own)
    return dict(both for setting in settings for both in setting.filters.items())
