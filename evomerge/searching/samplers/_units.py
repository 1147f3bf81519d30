"""Genomes as points of the unit cube that the genes' bounds map to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.searching.spaces.genes import Coordinate, Genome


def to_units(coordinates: Sequence[Coordinate], genome: Genome) -> np.ndarray:
    """A genome's point in the unit cube: float64 (coordinates,)."""
    return np.array([coordinate.to_unit(genome[coordinate.name]) for coordinate in coordinates])


def to_genome(coordinates: Sequence[Coordinate], units: Sequence[float] | np.ndarray) -> Genome:
    """The genome at a point of the unit cube; dimensions behind those of the coordinates are left out."""
    return {c.name: c.from_unit(float(unit)) for c, unit in zip(coordinates, units, strict=False)}
