"""Trials without a study."""

from __future__ import annotations

from typing import Any

from evomerge.searching.spaces.genes import Genome
from evomerge.studies.trials import Trial


def make_trial(number: int, value: float | None, *, genome: Genome | None = None, **rest: Any) -> Trial:
    """A trial in a generation of its own, of a recipe of its own."""
    fields: dict[str, Any] = {"generation": number, "slot": 0, "recipe": f"{number}", "fitness": "f", **rest}
    return Trial(number=number, value=value, genome=genome or {}, **fields)
