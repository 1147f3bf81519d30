"""Paired tests on differences of known distributions."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.results import paired_test
from evomerge.results.paired_test import paired


def _differences(gain: float, documents: int, seed: int) -> np.ndarray:
    """Paired accuracies that differ by `gain` on average: +1, 0 or -1 a document."""
    chances = [0.15 - gain / 2, 0.7, 0.15 + gain / 2]
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], size=documents, p=chances)


def test_no_difference_is_noise() -> None:
    found = paired([np.zeros(100), np.zeros(50)])
    assert (found.gain, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert found.verdict == "within noise"


def test_a_large_gain_is_real_and_its_mirror_image_a_loss() -> None:
    differences = [_differences(0.15, 600, seed) for seed in (0, 1)]
    up, down = paired(differences), paired([-d for d in differences])
    assert (up.verdict, down.verdict) == ("better", "worse")
    assert 0 < up.low < up.gain < up.high
    assert up.gain == pytest.approx(np.mean([d.mean() for d in differences]))


def test_the_test_is_reproducible() -> None:
    differences = [_differences(0.02, 200, 3)]
    assert paired(differences) == paired(differences)


def test_noise_is_called_a_gain_as_often_as_the_level_says() -> None:
    rejected = [paired([_differences(0.0, 150, seed)], resamples=500).p < paired_test.LEVEL for seed in range(400)]
    assert 0.02 < np.mean(rejected) < 0.09


def test_the_interval_covers_the_true_gain_about_as_often_as_it_says() -> None:
    true = 0.06
    intervals = [paired([_differences(true, 200, seed)], resamples=500) for seed in range(300)]
    covered = np.mean([found.low <= true <= found.high for found in intervals])
    assert 0.90 < covered < 0.99


def test_shares_weigh_the_entries() -> None:
    first, second = _differences(0.2, 400, 0), _differences(-0.1, 300, 1)
    found = paired([first, second], [0.75, 0.25])
    assert found.gain == pytest.approx(0.75 * first.mean() + 0.25 * second.mean())
    assert found.low < found.gain < found.high


def test_an_entry_of_one_document_is_tested_as_well() -> None:
    found = paired([np.array([1.0]), _differences(0.0, 50, 0)])
    assert found.low <= found.gain <= found.high
