"""Entries of a fitness in tests of the search."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from evomerge.searching.objective import Objective


class Entry(NamedTuple):
    """An entry of a fitness: its name, the number of its documents, its weight."""

    name: str
    documents: int
    weight: float = 1.0


def objective_of(entries: Iterable[Entry]) -> Objective:
    """The objective of some entries."""
    entries = list(entries)
    sizes = {entry.name: entry.documents for entry in entries}
    return Objective(sizes, {entry.name: entry.weight for entry in entries})
