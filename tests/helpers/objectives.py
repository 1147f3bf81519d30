"""Entries of a fitness in tests of the search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from evomerge.scoring.reports import Member
from evomerge.searching.documents import Chosen
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


def chosen(objective: Objective, ids: Mapping[str, list[int]]) -> Chosen:
    """Some documents, by the ids of each task that takes part."""
    return Chosen(dict(ids), objective.shares_among(ids))


def members(shares: Mapping[str, float], metric: str = "acc", climbs: str | None = None) -> dict[str, Member]:
    """The tasks of an entry, of which all have the same metrics."""
    return {task: Member(share, metric, climbs or metric) for task, share in shares.items()}


def lone(task: str, metric: str = "acc", climbs: str | None = None) -> dict[str, dict[str, Member]]:
    """An entry that is a task, as a group."""
    return {task: members({task: 1.0}, metric, climbs)}
