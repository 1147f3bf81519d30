"""Gradient ascent on the coordinates of a genome, watched on documents of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evomerge.searching.samplers import Generation, Result
from evomerge.searching.samplers._units import to_units
from evomerge.searching.spaces.genes import Coordinate, Genome

_BETAS, _TINY = (0.8, 0.95), 1e-12


class Ascent:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) in the unit cube that the bounds map to.

    Each step is taken on documents of its own, so its noise is no bias. Every `watch` steps the present point is
    compared with the best so far on the documents kept apart for selecting: where it is no better, the ascent goes
    back to the best with half the rate, and is over after a second such turn. Choices stay as they start.

    Args:
        coordinates: those of the genome.
        start: where the ascent begins.
        rate: the length of the first step, as a fraction of each gene's range; it falls as a cosine over `steps`.
        steps: the most steps; with None the ascent has no end, and the rate stays.
        watch: steps between two comparisons.
        pull: strength of the pull towards the start, relative to the gradient's own size at a distance of a whole
            range.
        effort: how many times the usual number of documents a step is taken on.
    """

    def __init__(
        self,
        coordinates: Sequence[Coordinate],
        start: Genome,
        *,
        rate: float,
        steps: int | None,
        watch: int,
        pull: float,
        effort: int,
    ) -> None:
        self._coordinates, self._start = coordinates, dict(start)
        self._rate, self._steps, self._watch, self._pull, self._effort = rate, steps, watch, pull, effort
        self._first = to_units(self._coordinates, start)
        self._point = self._first.copy()
        self.best = dict(start)
        self._mean = np.zeros(len(coordinates))
        self._square = np.zeros(len(coordinates))
        self._taken, self._turns, self._age = 0, 0, 0
        self._waiting: dict[int, str] = {}

    @property
    def over(self) -> bool:
        """Whether it has compared the point after its last step, or has turned twice; never without `steps`."""
        spent = self._steps is not None and self._taken >= self._steps
        return (spent and self.present == self.best) or (self._steps is not None and self._turns >= 2)

    @property
    def present(self) -> Genome:
        """The genome of the point that the ascent is at."""
        return self._genome(self._point)

    def ask(self, number: int) -> Generation:
        """The point of a step, or the two of a comparison; no genome while one of these is under way."""
        if self._waiting:
            return Generation([])
        due = self._age >= self._watch or (self._steps is not None and self._taken >= self._steps)
        self._waiting[number] = "compare" if due and self.present != self.best else "step"
        if self._waiting[number] == "compare":
            return Generation([self.best, self.present], select=True)
        return Generation([self.present], gradient=True, effort=self._effort)

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Takes the step, or the better of the two points; turns back if the step's candidate failed."""
        kind = self._waiting.pop(number)
        if kind == "compare":
            self._compare(*results)
        elif results[0].gradient is not None:
            self._step(results[0])
        else:
            self._turn()

    def _compare(self, best: Result, present: Result) -> None:
        self._age = 0
        if present.failed or present.value <= best.value:
            self._turn()
        else:
            self.best = self.present

    def _turn(self) -> None:
        """Goes back to the best point, with half the rate and without momentum."""
        self._turns += 1
        self._rate /= 2
        self._point = to_units(self._coordinates, self.best)
        self._mean[:] = 0.0

    def _step(self, result: Result) -> None:
        """Takes one step of Adam along a gradient."""
        assert result.gradient is not None
        slope = np.array([result.gradient.get(c.name, 0.0) for c in self._coordinates]) * self._scales()
        slope -= self._pull * float(np.sqrt(np.mean(slope**2))) * (self._point - self._first)
        self._taken += 1
        self._age += 1
        first, second = _BETAS
        self._mean = first * self._mean + (1 - first) * slope
        # The mean over the coordinates keeps apart what matters from what does not: where a coordinate's own
        # second moment is divided by, noise moves it as far as the others.
        self._square = second * self._square + (1 - second) * np.mean(slope**2)
        mean = self._mean / (1 - first**self._taken)
        square = self._square / (1 - second**self._taken)
        share = 1.0 if self._steps is None else 0.5 * (1 + math.cos(math.pi * (self._taken - 1) / self._steps))
        step = self._rate * share * mean / (np.sqrt(square) + _TINY)
        self._point = np.clip(self._point + step, 0.0, 1.0)

    def _scales(self) -> np.ndarray:
        """The derivative of each coordinate's value in its unit, (coordinates,); 0 for a choice."""
        genome = self.present
        scales = []
        for c in self._coordinates:
            if c.choices:
                scales.append(0.0)
            elif c.log:
                scales.append(float(genome[c.name]) * math.log(c.high / c.low))
            else:
                scales.append(c.high - c.low)
        return np.array(scales)

    def _genome(self, units: np.ndarray) -> Genome:
        """The genome at a point of the unit cube, with the choices of the start."""
        return {
            c.name: self._start[c.name] if c.choices else c.from_unit(float(unit))
            for c, unit in zip(self._coordinates, units, strict=True)
        }
