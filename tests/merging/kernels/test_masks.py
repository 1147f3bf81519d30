from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.kernels import masks


def _bits(count: int, salt: tuple[int, int], start: int = 0) -> torch.Tensor:
    index = torch.arange(start, start + count, dtype=torch.int32)
    first, second = (torch.tensor(part, dtype=torch.int32) for part in salt)
    return masks.bits(index, first, second)


def _reference(index: np.ndarray, salt: tuple[int, int]) -> np.ndarray:
    """The same hash in numpy's unsigned integers."""
    first, second = (np.uint32(part % 2**32) for part in salt)
    x = index.astype(np.uint32) ^ first
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x += second
    x *= np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


@pytest.mark.slow
@given(st.integers(0, 2**31 - 2000), st.integers(0, 1000), st.text(max_size=8), st.text(max_size=8))
def test_bits_equal_the_unsigned_reference(start: int, seed: int, expert: str, tensor: str) -> None:
    salt = masks.salt(seed, expert, tensor)
    ours = _bits(1000, salt, start).numpy().view(np.uint32)
    assert (ours == _reference(np.arange(start, start + 1000), salt)).all()


@given(st.floats(1e-9, 1.0))
@settings(max_examples=50)
def test_raising_a_density_only_adds_elements(density: float) -> None:
    x = _bits(5000, masks.salt(0, "a", "t"))
    lower, higher = masks.cutoff(density), masks.cutoff(min(1.0, density * 1.1))
    assert lower <= higher
    assert not ((x <= lower) & (x > higher)).any()


def test_density_one_keeps_everything() -> None:
    assert masks.cutoff(1.0) == 2**31 - 1
    assert bool((_bits(100_000, masks.salt(0, "a", "t")) <= masks.cutoff(1.0)).all())


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9])
def test_the_kept_fraction_is_the_density(density: float) -> None:
    n = 1_000_000
    kept = float((_bits(n, masks.salt(3, "maths", "w")) <= masks.cutoff(density)).double().mean())
    assert abs(kept - density) < 5 * math.sqrt(density * (1 - density) / n)


def test_masks_of_experts_tensors_and_seeds_are_independent() -> None:
    n = 400_000
    salts = [masks.salt(0, "a", "t"), masks.salt(0, "b", "t"), masks.salt(0, "a", "u"), masks.salt(1, "a", "t")]
    kept = torch.stack([_bits(n, salt) <= masks.cutoff(0.5) for salt in salts]).double()
    correlation = torch.corrcoef(kept) - torch.eye(4)
    assert float(correlation.abs().max()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("lag", [1, 2, 64, 576, 1024, 4096])
def test_masks_show_no_pattern_along_rows_and_columns(lag: int) -> None:
    n = 400_000
    kept = (_bits(n, masks.salt(0, "a", "t")) <= masks.cutoff(0.3)).double()
    correlation = float(torch.corrcoef(torch.stack([kept[:-lag], kept[lag:]]))[0, 1])
    assert abs(correlation) < 5 / math.sqrt(n)


def test_salts_differ_where_names_run_together() -> None:
    assert masks.salt(0, "ab", "c") != masks.salt(0, "a", "bc")


def test_the_smallest_density_still_has_a_cutoff() -> None:
    assert masks.cutoff(1e-12) == -(2**31)
