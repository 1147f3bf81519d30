from __future__ import annotations

import numpy as np
import pytest

from evomerge import certify
from evomerge.candidate import Score
from evomerge.fitness import Entry, measure
from evomerge.scoring import Report, TaskScore


def _differences(gain: float, documents: int, seed: int) -> np.ndarray:
    """Paired accuracies that differ by `gain` on average: +1, 0 or -1 a document."""
    chances = [0.15 - gain / 2, 0.7, 0.15 + gain / 2]
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], size=documents, p=chances)


def test_no_difference_is_noise() -> None:
    found = certify.paired([np.zeros(100), np.zeros(50)])
    assert (found.gain, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert found.verdict == "within noise"


def test_a_large_gain_is_real_and_its_mirror_image_a_loss() -> None:
    differences = [_differences(0.15, 600, seed) for seed in (0, 1)]
    up, down = certify.paired(differences), certify.paired([-d for d in differences])
    assert (up.verdict, down.verdict) == ("better", "worse")
    assert 0 < up.low < up.gain < up.high
    assert up.gain == pytest.approx(np.mean([d.mean() for d in differences]))


def test_the_test_is_reproducible() -> None:
    differences = [_differences(0.02, 200, 3)]
    assert certify.paired(differences) == certify.paired(differences)


def test_noise_is_called_a_gain_as_often_as_the_level_says() -> None:
    rejected = [
        certify.paired([_differences(0.0, 150, seed)], resamples=500).p < certify.LEVEL for seed in range(400)
    ]
    assert 0.02 < np.mean(rejected) < 0.09


def test_the_interval_covers_the_true_gain_about_as_often_as_it_says() -> None:
    true = 0.06
    intervals = [certify.paired([_differences(true, 200, seed)], resamples=500) for seed in range(300)]
    covered = np.mean([found.low <= true <= found.high for found in intervals])
    assert 0.90 < covered < 0.99


def test_a_group_is_one_entry_of_all_its_documents() -> None:
    def score(values: dict[str, list[float]]) -> Score:
        tasks = {
            name: TaskScore(np.arange(len(found)), {"acc": np.array(found)}, {"acc": float(np.mean(found))})
            for name, found in values.items()
        }
        report = Report(tasks, tokens=0, padding=0, truncated={}, cut_prompts={})
        groups = {"pair": ("x", "y"), "z": ("z",)}
        return Score(measure(entries, report, groups), report, groups, {})

    entries = [Entry(task="pair"), Entry(task="z")]
    ours = score({"x": [1, 1, 1, 0], "y": [1, 0], "z": [1, 1]})
    theirs = score({"x": [0, 1, 0, 0], "y": [1, 1], "z": [0, 1]})
    found = certify.paired(certify.differences(entries, ours, theirs))
    assert found.gain == pytest.approx(ours.measured.mean - theirs.measured.mean)
