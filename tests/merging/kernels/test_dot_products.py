from __future__ import annotations

import numpy as np
import torch

from evomerge.merging.kernels.dot_products import ColumnGram, Gram, RowGram
from evomerge.merging.methods._angles import dots_of
from tests.helpers.merging import normal


def test_dot_products_are_those_of_base_and_task_vectors() -> None:
    base, a, b = normal(6, 7), normal(6, 7, seed=1), normal(6, 7, seed=2)
    vectors = torch.stack([base, a - base, b - base]).double()
    flat = vectors.reshape(3, -1)
    np.testing.assert_allclose(Gram.of(base, [a, b]).dots, (flat @ flat.T).numpy(), rtol=1e-12)
    by_row = torch.einsum("irc,jrc->rij", vectors, vectors).numpy()
    np.testing.assert_allclose(RowGram.of(base, [a, b]).dots, by_row, rtol=1e-12)
    by_column = torch.einsum("irc,jrc->cij", vectors, vectors).numpy()
    np.testing.assert_allclose(ColumnGram.of(base, [a, b]).dots, by_column, rtol=1e-12)
    weights = torch.stack([a, b]).double().reshape(2, -1)
    dots = dots_of(Gram.of(base, [a, b]).dots, task_vectors=False)
    wanted = (weights @ weights.T).numpy()
    # δ is rounded to float32: an error of the vectors' size, however small their product.
    np.testing.assert_allclose(dots, wanted, rtol=0, atol=1e-7 * wanted.max())


def test_a_task_vector_of_zero_has_no_length_at_all() -> None:
    base = normal(1000)
    assert Gram.of(base, [base.clone()]).dots[1].tolist() == [0.0, 0.0]
