"""A tiny random Llama, and rows of the letters that it knows."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from evomerge.operators.training.corpus import Row
from tests.helpers.training import VOCABULARY, make_model


@pytest.fixture
def model() -> Any:
    return make_model()


@pytest.fixture
def make_rows() -> Callable[..., list[Row]]:
    """Random rows of 2 to `longest` tokens."""

    def make(count: int, longest: int = 12, seed: int = 0) -> list[Row]:
        rng = random.Random(seed)
        lengths = [rng.randint(2, longest) for _ in range(count)]
        return [Row(tuple(rng.choices(range(4, VOCABULARY), k=n)), rng.randint(1, n - 1)) for n in lengths]

    return make
