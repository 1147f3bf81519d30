from __future__ import annotations

import pytest

from evomerge.merging.kernels.layouts import columns_of, rows_of, shape_along


def test_rows_are_the_last_dimension() -> None:
    assert rows_of((8, 4, 16)) == (32, 16)
    assert rows_of((16,)) == (1, 16)
    assert rows_of((3, 0)) == (3, 0)


def test_columns_lie_along_the_first_dimension() -> None:
    assert columns_of((8, 4, 16)) == (8, 64)
    assert columns_of((16,)) == (1, 16)
    assert columns_of((3, 0)) == (1, 0)


@pytest.mark.parametrize(("along", "shape"), [("flat", (512,)), ("rows", (32, 16)), ("columns", (8, 64))])
def test_a_pass_sees_a_tensor_along_what_its_scalars_vary_by(along: str, shape: tuple[int, ...]) -> None:
    assert shape_along((8, 4, 16), along) == shape
