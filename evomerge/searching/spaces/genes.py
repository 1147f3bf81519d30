"""Genes and coordinates: what may be searched of a number or a choice, whatever it is part of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from evomerge.files.schema import Strict

Genome = dict[str, float | str]


Axis = Literal["layer", "module", "expert"]


def distinct(per: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Refuses axes that are named twice."""
    if len(set(per)) < len(per):
        raise ValueError("names an axis twice")
    return per


class Gene(Strict):
    """A number that is searched.

    Attributes:
        low, high: bounds, inclusive.
        init: where the search starts; the middle by default.
        per: the axes along which it has a value of its own.
        scale: `log` searches the logarithm, for coefficients that span magnitudes.
        step: only `low`, `low` + `step`, ..., `high` are searched; `init` is one of them, and by default the one
            nearest the middle.
    """

    low: float
    high: float
    init: float | None = None
    per: Annotated[tuple[Axis, ...], AfterValidator(distinct)] = ()
    scale: Literal["linear", "log"] = "linear"
    step: float | None = None

    @model_validator(mode="after")
    def _sound(self) -> Gene:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low must be below high, but they are {self.low:g} and {self.high:g}")
        if self.init is not None and not self.low <= self.init <= self.high:
            raise ValueError(f"init must lie in [{self.low:g}, {self.high:g}], but is {self.init:g}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"a log scale needs a positive low, but it is {self.low:g}")
        if self.step is not None:
            self._check_step(self.step)
        return self

    def _check_step(self, step: float) -> None:
        if self.scale == "log":
            raise ValueError("a log scale takes no step")
        if step <= 0:
            raise ValueError(f"step must be positive, but is {step:g}")
        if not _whole((self.high - self.low) / step):
            raise ValueError(f"high must lie a whole number of steps of {step:g} above {self.low:g}, low")
        if self.init is not None and self.init != self.low and not _whole((self.init - self.low) / step):
            raise ValueError(f"init must lie a whole number of steps of {step:g} above {self.low:g}, low")


def _whole(count: float) -> bool:
    """Whether a count is a whole number, 1 or more, within rounding."""
    return round(count) >= 1 and math.isclose(count, round(count), rel_tol=1e-9)


@dataclass(frozen=True)
class Coordinate:
    """One number of the genome, or one choice: its name, and what the unit interval means.

    Attributes:
        choices: what a choice may be, each an equal part of the unit interval; () for a number in [low, high].
        step: between the values that a number may have, each an equal part of the unit interval; None for any
            value in [low, high].
    """

    name: str
    low: float
    high: float
    init: float | str
    log: bool
    choices: tuple[str, ...] = ()
    step: float | None = None

    @property
    def steps(self) -> int:
        """From low to high; 0 if it has no step."""
        return round((self.high - self.low) / self.step) if self.step else 0

    def at(self, index: int) -> float:
        """The value that many steps above low, as it is written in decimals."""
        if index == self.steps:
            return self.high
        return float(Decimal(repr(self.low)) + index * Decimal(repr(self.step)))

    def index(self, value: float) -> int:
        """The inverse of `at`; of a value between two the nearer one's."""
        assert self.step
        return min(max(round((value - self.low) / self.step), 0), self.steps)

    def nearest(self, value: float) -> float:
        """The value that it may have nearest to one."""
        return self.at(self.index(value)) if self.step else min(max(value, self.low), self.high)

    def from_unit(self, unit: float) -> float | str:
        """The value at `unit` in [0, 1]; values outside are clipped."""
        unit = min(max(unit, 0.0), 1.0)
        if self.choices:
            return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]
        if self.step:
            return self.at(min(int(unit * (self.steps + 1)), self.steps))
        if unit in (0.0, 1.0):
            return self.high if unit else self.low
        if self.log:
            return min(
                max(math.exp(math.log(self.low) + unit * math.log(self.high / self.low)), self.low), self.high
            )
        return self.low + unit * (self.high - self.low)

    def clip(self, value: float | str) -> float | str:
        """The nearest value within its bounds."""
        return self.from_unit(self.to_unit(value))

    def to_unit(self, value: float | str) -> float:
        """The inverse of `from_unit`; the middle of the part that is a choice's, or that of a value of few."""
        if isinstance(value, str):
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.step:
            return (self.index(value) + 0.5) / (self.steps + 1)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def initial(coordinates: Sequence[Coordinate]) -> Genome:
    """The genome that the space's `init` values describe."""
    return {coordinate.name: coordinate.init for coordinate in coordinates}
