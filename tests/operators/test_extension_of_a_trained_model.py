"""Context extension on a tiny model trained to read 64 bytes: the papers' order, by loss and by retrieval."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import operators_context  # type: ignore[import-not-found]
from operators_context import Reading

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def readings() -> Iterator[dict[str, Reading]]:
    """Half a minute of one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield operators_context.untuned(operators_context.train(0), operators_context.exam("holdout"))
    finally:
        torch.set_num_threads(threads)


def test_the_order_of_losses_at_four_times_the_length(readings: dict[str, Reading]) -> None:
    tail = {name: reading.tail for name, reading in readings.items()}
    assert tail["none"] - tail["ntk"] >= 0.03
    assert tail["ntk"] - tail["yarn"] >= 0.03


def test_pass_keys_are_lost_without_extension_and_found_with_it(readings: dict[str, Reading]) -> None:
    assert readings["none"].keys <= 0.6
    assert readings["yarn"].keys >= 0.95
    assert readings["linear"].keys >= 0.95


def test_interpolation_finds_the_keys_and_forgets_how_to_read(readings: dict[str, Reading]) -> None:
    """Why a fitness holds both retrieval and log-loss."""
    assert readings["linear"].tail > readings["yarn"].tail + 0.5
    assert readings["linear"].window > readings["none"].window + 0.5
