"""A parameter of a merge method: its range, its default, and whether each expert has its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """A coefficient of a method.

    Attributes:
        per_expert: whether each expert has its own value; else there is one for all experts together.
        low, high: the range of sound values, both included.
        open_low: whether `low` itself is no sound value.
        default: the value where a recipe gives none. None makes the parameter required.
        selects: whether the parameter says which elements take part. As functions of it, merged weights jump and
            are flat between the jumps.
    """

    name: str
    per_expert: bool = False
    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    default: float | None = None
    selects: bool = False

    def fault(self, value: float) -> str | None:
        """Why a value is unsound; None if it is sound."""
        above = value > self.low if self.open_low else value >= self.low
        if above and value <= self.high:
            return None
        return f"must lie in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}], but is {value:g}"
