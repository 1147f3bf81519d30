"""How genomes are varied in the unit cube: two are mixed, one is mutated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.searching.spaces.genes import Coordinate


def mix(
    coordinates: Sequence[Coordinate], first: np.ndarray, second: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(1 - w) first + w second, clipped to the unit cube; a choice is taken from the parent of more weight.

    Args:
        first, second: the parents' points in the unit cube, each (coordinates,).
        weights: w, the second parent's weight in each coordinate: (coordinates,).
    """
    weights = np.where(_are_choices(coordinates), weights > 0.5, weights)
    return np.asarray(np.clip((1.0 - weights) * first + weights * second, 0.0, 1.0))


def mutate(
    coordinates: Sequence[Coordinate], units: np.ndarray, step: float, random: np.random.Generator
) -> np.ndarray:
    """Adds N(0, σ²) to each number, σ log-uniform in [step/100, step]; draws one choice anew, on average.

    Args:
        units: the genome's point in the unit cube, (coordinates,).
    """
    size = step * 100.0 ** -random.random()
    moved = np.clip(units + size * random.standard_normal(len(units)), 0.0, 1.0)
    choices = _are_choices(coordinates)
    anew = random.random(len(units)) * max(int(choices.sum()), 1) < 1.0
    return np.where(choices, np.where(anew, random.random(len(units)), units), moved)


def _are_choices(coordinates: Sequence[Coordinate]) -> np.ndarray:
    """Which coordinates are choices: bool (coordinates,)."""
    return np.array([bool(coordinate.choices) for coordinate in coordinates])
