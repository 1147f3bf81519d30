"""What is the quasi-random search's own: its points fill the space evenly."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.game import Game, Make


@pytest.mark.parametrize("sequence", ["sobol", "halton"])
def test_qmc_fills_the_space_evenly_whatever_its_generations(sequence: str, make: Make) -> None:
    parts = Game(make("qmc", population=8, sequence=sequence), "qmc").play(5).genomes
    whole = make("qmc", population=32, sequence=sequence).ask(1).genomes
    assert [genome for number in range(1, 5) for genome in parts[number]] == list(whole)
    counts = np.histogram([float(genome["a"]) for genome in whole], bins=8, range=(0.0, 1.5))[0]
    assert counts.min() >= 3
    assert counts.max() <= 5
