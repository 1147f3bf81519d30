from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from evomerge.merging.kernels.tables import KINDS
from tests.helpers.merging import normal


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (5, 7), (2, 3, 4)], ids=str)
def test_every_kind_has_a_table_of_any_shape_made_of_arrays(kind: str, shape: tuple[int, ...]) -> None:
    base = normal(*shape)
    table = KINDS[kind].of(base, [base + 0.1])
    assert all(isinstance(getattr(table, field.name), np.ndarray) for field in fields(table))
    assert all(np.isfinite(getattr(table, field.name)).all() for field in fields(table))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(kind: str, bad: float) -> None:
    base, expert = torch.zeros(3, 4), torch.zeros(3, 4)
    expert[1, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        KINDS[kind].of(base, [expert])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_tables_do_not_depend_on_threads(kind: str) -> None:
    base, expert = normal(300, 5001), normal(300, 5001, seed=1)
    before, made = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(KINDS[kind].of(base, [base + 0.1 * expert]))
    torch.set_num_threads(before)
    assert all(np.array_equal(getattr(made[0], f.name), getattr(made[1], f.name)) for f in fields(made[0]))
