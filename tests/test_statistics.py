from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge import statistics
from evomerge.checkpoints import Checkpoint
from evomerge.statistics import EXACT, Statistics


def _table(base: torch.Tensor, expert: torch.Tensor) -> Statistics:
    return Statistics("magnitude", {"t": statistics.magnitudes(base, expert)}, {"t": base.numel()})


@given(st.integers(1, 2000), st.floats(0.001, 1.0))
@settings(max_examples=60, deadline=None)
def test_small_tensors_keep_the_density_exactly(size: int, density: float) -> None:
    expert = torch.randn(size, generator=torch.Generator().manual_seed(size))
    threshold = _table(torch.zeros(size), expert).threshold("t", density)
    assert int((expert.abs() >= threshold).sum()) == max(1, round(density * size))


@pytest.mark.parametrize("density", [0.001, 0.05, 0.1, 0.333, 0.5, 0.9, 0.999, 1.0])
def test_large_tensors_keep_the_density_within_a_thousandth(density: float) -> None:
    size = 8 * EXACT + 77
    expert = torch.randn(size, generator=torch.Generator().manual_seed(0)) ** 3
    threshold = _table(torch.zeros(size), expert).threshold("t", density)
    assert abs(float((expert.abs() >= threshold).double().mean()) - density) <= 1e-3


def test_magnitudes_that_tie_with_the_threshold_are_all_kept() -> None:
    expert = torch.tensor([1.0, 1.0, 1.0, 2.0])
    threshold = _table(torch.zeros(4), expert).threshold("t", 0.5)
    assert int((expert >= threshold).sum()) == 4


def test_an_empty_tensor_has_a_threshold() -> None:
    assert _table(torch.zeros(0), torch.zeros(0)).threshold("t", 0.5) == 0.0


def test_the_cosine_does_not_depend_on_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3_000_001, generator=generator), torch.randn(3_000_001, generator=generator)
    before, found = torch.get_num_threads(), set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.add(float(statistics.cosine(a, b)[0]))
    torch.set_num_threads(before)
    assert len(found) == 1
    assert found.pop() == pytest.approx(float(torch.nn.functional.cosine_similarity(a, b, dim=0)), abs=1e-6)


def test_the_cosine_of_a_zero_tensor_is_one() -> None:
    assert statistics.cosine(torch.zeros(3), torch.ones(3)).tolist() == [1.0]


@pytest.fixture
def loaded(family: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """Messages of the loads done by the test, and the cache folder."""
    return [], tmp_path / "tables"


def _load(family: Path, messages: list[str], cache: Path) -> Statistics:
    base, expert = Checkpoint(family / "models/base", "base"), Checkpoint(family / "models/ant", "experts.ant")
    return statistics.load("magnitude", base, expert, list(base), cache, messages.append)


def test_tables_are_computed_once(family: Path, loaded: tuple[list[str], Path]) -> None:
    messages, cache = loaded
    first, second = _load(family, messages, cache), _load(family, messages, cache)
    assert len(messages) == 1
    assert first.threshold("model.norm.weight", 0.5) == second.threshold("model.norm.weight", 0.5)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_damaged_tables_are_computed_again(
    family: Path, loaded: tuple[list[str], Path], damage: bytes | None
) -> None:
    messages, cache = loaded
    whole = _load(family, messages, cache).threshold("model.norm.weight", 0.5)
    (file,) = cache.glob("*.npz")
    data = bytearray(file.read_bytes())
    if damage is None:
        data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data) if damage is None else damage)
    assert _load(family, messages, cache).threshold("model.norm.weight", 0.5) == whole
    assert np.load(file, allow_pickle=False).files


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        statistics.magnitudes(torch.zeros(2), torch.tensor([1.0, float("nan")]))
