"""Gradient ascent through the merge: the derivative in all coefficients at once, by one backward pass.

Merged weights are a smooth function of the coefficients while masks, thresholds and elected signs stay: see
`merging.gradients`. Steps are Adam's (Kingma and Ba 2015, arXiv 1412.6980), each on documents of its own; it climbs
the smooth metric. The first generation is the known points, of which it learns no more than which of them failed:
the ascent begins at the first that could be scored. Choices stay as they are there.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from evomerge.searching.samplers import Generation, Problem, Result, SamplerOptions
from evomerge.searching.samplers._ascent import Ascent
from evomerge.searching.spaces.genes import Genome

FRESH_DOCUMENTS = True
SEVERAL_OBJECTIVES = False
WANTS_DOCUMENT_SCORES = False
LEARNS = True


class Options(SamplerOptions):
    """What the ascent may be told.

    Attributes:
        rate: the length of the first step, as a fraction of each gene's range.
        watch: steps between two comparisons with the best point so far, on documents kept apart.
        pull: strength of the pull towards the start.
        effort: how many times the usual number of documents a step is taken on.
    """

    rate: float = Field(default=0.05, gt=0.0, le=1.0)
    watch: int = Field(default=5, ge=1)
    pull: float = Field(default=0.1, ge=0.0)
    effort: int = Field(default=1, ge=1)

    @property
    def climbs_gradients(self) -> bool:
        """True: it does nothing else."""
        return True


class GradientSampler:
    """Proposes the known points, then one point at a time: each step waits for the one before."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem, self._options = problem, options
        self._ascent: Ascent | None = None

    def ask(self, number: int) -> Generation:
        """The known points; then a step of the ascent, or a comparison."""
        if number == 0:
            return Generation(self._problem.starts)
        if self._ascent is None:
            return Generation([])
        return self._ascent.ask(number)

    def tell(self, number: int, results: Sequence[Result]) -> None:
        """Begins the ascent at the first known point that did not fail; then takes steps."""
        if number > 0:
            assert self._ascent is not None
            self._ascent.tell(number, results)
            return
        options, starts = self._options, self._problem.starts
        self._ascent = Ascent(
            self._problem.coordinates,
            next((start for start, result in zip(starts, results, strict=True) if not result.failed), starts[0]),
            rate=options.rate,
            steps=None,
            watch=options.watch,
            pull=options.pull,
            effort=options.effort,
        )

    def recommend(self) -> Genome | None:
        """The point that won all comparisons so far; the first known point before the ascent begins."""
        return self._problem.starts[0] if self._ascent is None else self._ascent.best


def make(problem: Problem, options: Options) -> GradientSampler:
    """A gradient ascent over the problem's coordinates."""
    return GradientSampler(problem, options)
