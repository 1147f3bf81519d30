"""Finds the YAML definitions that ship with evomerge.

Definitions lie in `search_spaces/` and `fitness/`: at the top of a source checkout, and inside the installed
package as `evomerge/_shipped/`. A reference to one is its name (`dare_ties_by_layer`) or a path.
"""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import ConfigError, suggest

KINDS = ("search_spaces", "fitness")

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(kind: str) -> Path:
    """The folder with the shipped definitions of a kind."""
    shipped = _PACKAGE / "_shipped" / kind
    return shipped if shipped.is_dir() else _PACKAGE.parent / kind


def names(kind: str) -> tuple[str, ...]:
    """The names of the shipped definitions of a kind, sorted."""
    return tuple(sorted(path.stem for path in folder(kind).glob("*.yaml")))


def find(kind: str, reference: str, relative_to: Path, where: str) -> Path:
    """The file that `reference` means: a path (relative to `relative_to`) or the name of a shipped definition.

    Args:
        where: the key in a person's file that holds the reference, for the message.

    Raises:
        ConfigError: there is no such file; the message lists the shipped names.
    """
    path = (relative_to / Path(reference).expanduser()).resolve()
    if path.is_file():
        return path
    shipped = folder(kind) / f"{reference}.yaml"
    if shipped.parent == folder(kind) and shipped.is_file():
        return shipped
    noun = "search space" if kind == "search_spaces" else "fitness"
    raise ConfigError(
        where, [f"no {noun} {reference!r}: there is no file {path}.{suggest(reference, names(kind))}"]
    )
