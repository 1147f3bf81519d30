from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from evomerge import kernels, plugins
from evomerge.methods import TensorInputs

METHODS = plugins.names("methods")


def _inputs(method: ModuleType, experts: int, **values: Any) -> TensorInputs:
    names = tuple("abcd"[:experts])
    numbers = {"weight": 0.7, "density": 0.4, "lambda": 1.1, "t": 0.3, **values}
    return TensorInputs(
        name="t",
        experts=names,
        values={
            p.name: tuple(numbers[p.name] + 0.1 * k for k in range(experts if p.per_expert else 1))
            for p in method.PARAMETERS
        },
        options=method.OPTIONS,
        seed=5,
        threshold=lambda expert, density: 0.01,
        cosine=dict.fromkeys(names, 0.9),
    )


def _merge(name: str, size: int, dtype: torch.dtype, *, compiled: bool, experts: int = 2) -> torch.Tensor:
    method = plugins.load("methods", name)
    experts = min(experts, method.EXPERTS[1] or experts)
    generator = torch.Generator().manual_seed(size)
    base = torch.randn(size, generator=generator).to(dtype)
    others = [(base + 0.02 * torch.randn(size, generator=generator)).to(dtype) for _ in range(experts)]
    out = torch.empty_like(base)
    scalars = method.scalars(_inputs(method, experts))
    kernels.run(method, method.OPTIONS, out, base, others, scalars, compiled=compiled)
    return out


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eager_and_compiled_one_and_two_threads_give_the_same_bits(
    name: str, dtype: torch.dtype, one_thread: None
) -> None:
    if not kernels.can_compile(torch.device("cpu")):
        pytest.skip("no C++ compiler here")
    size = 3 * kernels.EAGER_BLOCK + 12_345
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results += [_merge(name, size, dtype, compiled=compiled) for compiled in (False, True)]
    whole = results[0].view(torch.uint8)
    assert all(torch.equal(whole, other.view(torch.uint8)) for other in results[1:])


@pytest.mark.parametrize("name", METHODS)
def test_blocks_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _merge(name, 5000, torch.float32, compiled=False)
    monkeypatch.setattr(kernels, "EAGER_BLOCK", 512)
    assert torch.equal(whole, _merge(name, 5000, torch.float32, compiled=False))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [0, 1, 2, 31])
def test_tensors_of_any_size_merge(name: str, size: int) -> None:
    assert _merge(name, size, torch.bfloat16, compiled=True).shape == (size,)


def test_float16_sums_do_not_overflow_on_the_way() -> None:
    method = plugins.load("methods", "task_arithmetic")
    base, expert = torch.zeros(8, dtype=torch.float16), torch.full((8,), 40_000.0, dtype=torch.float16)
    out = torch.empty_like(base)
    # 3 · 40,000 is beyond float16; the sum is not.
    kernels.run(method, method.OPTIONS, out, base, [expert, expert], {"weight": [3.0, -2.0]}, compiled=False)
    assert torch.equal(out, expert)


def test_elected_sign_is_that_of_the_sum() -> None:
    deltas = [torch.tensor([1.0, -2.0, 3.0, 0.0]), torch.tensor([-3.0, 1.0, 1.0, -1.0])]
    weights = torch.tensor([1.0, 1.0])
    merged = kernels.elect(deltas, weights, normalize=False)
    assert merged.tolist() == [-3.0, -2.0, 4.0, -1.0]
    normalized = kernels.elect(deltas, weights, normalize=True)
    assert normalized.tolist() == [-3.0, -2.0, 2.0, -1.0]


def test_a_compiler_that_does_not_work_costs_a_warning_and_no_candidate() -> None:
    code = """
import torch, warnings
from evomerge import kernels, plugins
method = plugins.load("methods", "linear")
base, out, again = torch.ones(8192), torch.empty(8192), torch.empty(8192)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for target in (out, again):
        kernels.run(method, method.OPTIONS, target, base, [base, 3 * base], {"weight": [0.5, 0.5]}, compiled=True)
ours = [w for w in caught if "merging without torch.compile" in str(w.message)]
assert len(ours) == 1, caught
assert torch.equal(out, 2 * base) and torch.equal(again, out)
"""
    environment = {**os.environ, "CXX": "/bin/false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
