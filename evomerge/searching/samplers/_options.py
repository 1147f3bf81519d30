"""Options that several samplers have."""

from __future__ import annotations

from pydantic import Field

from evomerge.searching.samplers import SamplerOptions


class ProposalOptions(SamplerOptions):
    """What a sampler may be told whose generations may have any size.

    Attributes:
        population: candidates proposed at once.
    """

    population: int = Field(default=16, ge=1)


class ModelOptions(SamplerOptions):
    """What a sampler may be told that proposes from a model of the fitness.

    Attributes:
        population: candidates proposed at once.
        startup: random candidates before the model takes over.
    """

    population: int = Field(default=4, ge=1)
    startup: int = Field(default=12, ge=1)
