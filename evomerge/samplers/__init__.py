"""Samplers, one a file: what proposes genomes. A new file here is a new sampler.

A sampler's module holds:

- a docstring: the algorithm and its paper;
- `Options`: a pydantic model of its options;
- `make(coordinates, options, seed, starts) -> Sampler`: `starts` are known points (`space.known_points`), at least
  one, which the sampler asks for before all others.

The contract that makes resuming exact: what `ask` returns is a pure function of the seed and of what was told
before. A study is resumed by asking and telling its finished generations again; nothing is pickled. So draw from
generators keyed by (seed, generation or candidate), never from a running one, and hold no clock, no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from evomerge.space import Genome


class Sampler(Protocol):
    """Proposes genomes a generation at a time. Higher values are better."""

    def ask(self) -> list[Genome]:
        """The next generation. Asked once before each `tell`; asked again if a generation failed whole."""

    def tell(self, values: Sequence[float]) -> None:
        """The fitness of each genome of the generation last asked for, finite, in its order.

        A failed candidate comes with the worst value of its generation.
        """


def generator(seed: int, counter: int) -> np.random.Generator:
    """The random generator of one candidate or generation: counter-based, so that it needs no history."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, counter]))
