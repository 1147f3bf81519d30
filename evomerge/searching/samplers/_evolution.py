"""The options of an evolution strategy, and how many candidates it proposes by default."""

from __future__ import annotations

import math

from pydantic import Field

from evomerge.searching.samplers import SamplerOptions


class EvolutionOptions(SamplerOptions):
    """What every evolution strategy may be told.

    Attributes:
        population: candidates a generation, 4 + 3 ln(dimensions) by default.
        sigma: the first step size, as a fraction of each gene's range.
    """

    population: int | None = Field(default=None, ge=4)
    sigma: float = Field(default=0.2, gt=0.0, le=1.0)


def default_population(dimensions: int) -> int:
    """4 + ⌊3 ln n⌋ candidates for n dimensions (Hansen 2016, arXiv 1604.00772, table 1)."""
    return 4 + int(3 * math.log(dimensions))
