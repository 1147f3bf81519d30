"""The finished candidates of a search, generation by generation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from evomerge.studies.trials import Trial


def generations_of(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The finished search trials of each generation, each recipe once in it."""
    wanted = [trial for trial in trials if trial.role == "search" and trial.value is not None]
    wanted.sort(key=lambda trial: (trial.generation, trial.number))
    groups = (list(group) for _, group in itertools.groupby(wanted, key=lambda trial: trial.generation))
    return [list({trial.recipe: trial for trial in reversed(group)}.values())[::-1] for group in groups]


def values_of(trials: Sequence[Trial]) -> np.ndarray:
    """The values of finished trials, float64 (trials,)."""
    return np.array([trial.value for trial in trials], dtype=np.float64)
