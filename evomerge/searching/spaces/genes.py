"""Genes and coordinates: what may be searched of a number or a choice, whatever it is part of.

A gene is what a search space or an operator says of one parameter. Laid over a model it gives coordinates: one for
each combination of the axes along which it varies. A genome has a value for each coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from evomerge.files.schema import Strict

Genome = dict[str, float | str]
Axis = Literal["layer", "module", "expert"]

ON, OFF = "on", "off"  # the categories of a switch
BASE, MIX = "base", "mix"  # the categories of a source that are no expert


def distinct(per: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes unchanged. Raises ValueError if one is named twice."""
    if len(set(per)) < len(per):
        raise ValueError("names an axis twice")
    return per


# --- genes, as files have them -----------------------------------------------------------------------------


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


def parse_switch(value: Any) -> Any:
    """The category of a switch that a truth value means, as which YAML takes a bare `on` or `off`.

    Any other value is returned unchanged.
    """
    return {True: ON, False: OFF}[value] if isinstance(value, bool) else value


class Switch(Strict):
    """A gene that says whether an expert takes part: where it is `off`, the expert's weight is 0.

    Attributes:
        per: the axes along which there are switches; without `expert`, one switches all experts.
        init: the category that the search starts with.
    """

    per: Annotated[tuple[Axis, ...], AfterValidator(distinct)] = ()
    init: Annotated[Literal["on", "off"], BeforeValidator(parse_switch)] = "on"


class SourceGene(Strict):
    """A gene that says which expert takes part, alone and with its own weight.

    The search starts with `mix` if that may be chosen, else with the first expert.

    Attributes:
        per: the axes along which there are choices.
        base: whether no expert may be chosen, which leaves the base.
        mix: whether all experts may be chosen, each with its weight.
    """

    per: Annotated[tuple[Literal["layer", "module"], ...], AfterValidator(distinct)] = ()
    base: bool = False
    mix: bool = False


# --- coordinates, as a search has them ---------------------------------------------------------------------


@dataclass(frozen=True)
class Coordinate:
    """One number of the genome, or one choice, and what the unit interval means for it.

    Attributes:
        name: the gene and the coordinate's place on each of the gene's axes, like `weight.g0.attention.maths`.
        low, high: the bounds of a number, inclusive.
        init: where the search starts.
        log: whether the unit interval maps to the logarithm.
        choices: the categories of a choice, each an equal part of the unit interval; () for a number.
        step: the distance between the values that a number may have, each an equal part of the unit interval; None
            for any value in [low, high].
        depth: the number of its layer, layer group or anchor; None if it holds for all layers.
        module: its module group or tensor pattern; "" if it holds for all of them.
        expert: its expert; "" if it holds for all of them.
    """

    name: str
    low: float
    high: float
    init: float | str
    log: bool
    choices: tuple[str, ...] = ()
    step: float | None = None
    depth: int | None = None
    module: str = ""
    expert: str = ""

    @property
    def gene(self) -> str:
        """The gene that it is a coordinate of; an operator's coordinate has the operator's name."""
        return self.name.partition(".")[0]

    @property
    def steps(self) -> int:
        """The number of steps from low to high; 0 if it has no step."""
        return round((self.high - self.low) / self.step) if self.step else 0

    def at(self, index: int) -> float:
        """The value that lies `index` steps above low, exact in decimals."""
        if index == self.steps:
            return self.high
        return float(Decimal(repr(self.low)) + index * Decimal(repr(self.step)))

    def index(self, value: float) -> int:
        """The number of steps from low to the allowed value nearest to `value`: the inverse of `at`."""
        assert self.step
        return min(max(round((value - self.low) / self.step), 0), self.steps)

    def nearest(self, value: float) -> float:
        """The allowed value nearest to `value`."""
        return self.at(self.index(value)) if self.step else min(max(value, self.low), self.high)

    def from_unit(self, unit: float) -> float | str:
        """The value at `unit` in [0, 1]; units outside are clipped."""
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

    def to_unit(self, value: float | str) -> float:
        """The inverse of `from_unit`: for a category, or a value with a step, the middle of its part."""
        if isinstance(value, str):
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.step:
            return (self.index(value) + 0.5) / (self.steps + 1)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def coordinate_name(gene: str, places: Iterable[str]) -> str:
    """The name of a gene's coordinate at a place on each of the gene's axes."""
    return ".".join([gene, *places])


def initial(coordinates: Sequence[Coordinate]) -> Genome:
    """The genome of all coordinates at their `init`."""
    return {coordinate.name: coordinate.init for coordinate in coordinates}
