"""Warnings where answers are cut off more or less often."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.results import truncation
from evomerge.scoring.reports import Report, TaskScore


@pytest.mark.parametrize(
    ("counts", "differs"),
    [
        ((0, 0, 200), False),
        ((12, 40, 200), True),
        ((40, 12, 200), True),
        ((12, 14, 200), False),
        ((0, 5, 200), False),  # p = 0.061
        ((0, 6, 200), True),  # p = 0.030
        ((195, 200, 200), False),
        ((194, 200, 200), True),
        ((1000, 1090, 10_000), False),  # beyond chance, but below 1 % of the answers
        ((0, 1, 1), False),
        ((0, 4, 4), True),
    ],
)
def test_truncation_differs_where_it_is_noticeable_and_beyond_chance(
    counts: tuple[int, int, int], differs: bool
) -> None:
    assert truncation.truncation_differs(*counts) is differs


def test_equal_rates_of_truncation_seldom_differ() -> None:
    random = np.random.default_rng(0)
    pairs = random.binomial(300, 0.2, size=(2000, 2))
    assert np.mean([truncation.truncation_differs(int(a), int(b), 300) for a, b in pairs]) < 0.05


def _truncated(counts: dict[str, int], documents: int = 200) -> Report:
    tasks = {name: TaskScore(np.arange(documents), {}, {}) for name in counts}
    return Report(tasks, tokens=0, padding=0, truncated=counts, cut_prompts={})


def test_a_warning_names_the_task_and_the_models_that_differ() -> None:
    others = {"base": {"sums": 40, "words": 3}, "expert ant": {"sums": 13, "words": 3}}
    (warning,) = truncation.truncation_warnings("the winner", _truncated({"sums": 12, "words": 2}), others)
    assert warning.startswith("sums: truncation differs: of 200 answers the winner had 12 cut off, base 40; ")
    assert warning.endswith("raise the task's max_gen_toks")
    assert truncation.truncation_warnings("the winner", _truncated({"words": 2}), others) == ()
