from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge import plugins
from evomerge.merging import methods
from evomerge.merging.kernels import passes, tables
from evomerge.merging.kernels.compiling import can_compile
from evomerge.merging.methods import Method, TensorInputs

METHODS = plugins.names("methods")
VALUES = {"weight": 0.7, "density": 0.4, "lambda": 1.1, "t": 0.3, "gamma": 0.05, "epsilon": 0.1, "select_topk": 0.6}


def _inputs(method: Method, base: torch.Tensor, experts: list[torch.Tensor], options: Any) -> TensorInputs:
    names = tuple("abcd"[: len(experts)])
    return TensorInputs(
        name="t",
        experts=names,
        values={
            p.name: tuple(VALUES.get(p.name, 1.0) + 0.1 * k for k in range(len(experts) if p.per_expert else 1))
            for p in method.PARAMETERS
        },
        options=options,
        seed=5,
        table=lambda kind, which: tables.KINDS[kind].of(base, [experts[names.index(one)] for one in which]),
    )


def _merge(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    compiled: bool,
    experts: int = 2,
    options: dict[str, bool] | None = None,
) -> torch.Tensor:
    method = methods.load(name)
    experts = min(experts, method.EXPERTS[1] or experts)
    generator = torch.Generator().manual_seed(sum(shape))
    base = torch.randn(shape, generator=generator).to(dtype)
    others = [(base + 0.02 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(experts)]
    out = torch.empty_like(base)
    chosen = {**method.OPTIONS, **(options or {})}
    scalars = method.scalars(_inputs(method, base, others, chosen))
    passes.run(method, chosen, out, base, others, scalars, compiled=compiled)
    return out


# Options that change which indices a method needs.
VARIANTS = [
    *((name, {}) for name in METHODS),
    ("nuslerp", {"flatten": False}),
    ("nuslerp", {"flatten": False, "row_wise": True, "task_vectors": False}),
    ("model_stock", {"filter_wise": True}),
]


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _bits(name: str, dtype: torch.dtype, threads: int, *, compiled: bool, options: dict[str, bool]) -> torch.Tensor:
    torch.set_num_threads(threads)
    shape = (301, 697)  # more than three blocks, and rows do not end where blocks do
    return _merge(name, shape, dtype, compiled=compiled, options=options).view(torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_eager_on_one_thread_and_compiled_on_two_give_the_same_bits(
    name: str, options: dict[str, bool], one_thread: None
) -> None:
    if not can_compile(torch.device("cpu")):
        pytest.skip("no C++ compiler here")
    eager = _bits(name, torch.bfloat16, 1, compiled=False, options=options)
    assert torch.equal(eager, _bits(name, torch.bfloat16, 2, compiled=True, options=options))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dare_ties", "della", "ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_bits_depend_on_neither_compiler_nor_threads_in_any_dtype(
    name: str, dtype: torch.dtype, one_thread: None
) -> None:
    if not can_compile(torch.device("cpu")):
        pytest.skip("no C++ compiler here")
    whole = _bits(name, dtype, 1, compiled=False, options={})
    for threads in (1, 2):
        for compiled in (False, True):
            assert torch.equal(whole, _bits(name, dtype, threads, compiled=compiled, options={}))


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("shape", [(5000,), (70, 73), (7, 11, 65)], ids=str)
def test_blocks_do_not_show(
    name: str, options: dict[str, bool], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _merge(name, shape, torch.float32, compiled=False, options=options)
    monkeypatch.setattr(passes, "EAGER_BLOCK", 512)
    assert torch.equal(whole, _merge(name, shape, torch.float32, compiled=False, options=options))


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (31,), (3, 0), (1, 1), ()], ids=str)
def test_tensors_of_any_shape_merge(name: str, options: dict[str, bool], shape: tuple[int, ...]) -> None:
    merged = _merge(name, shape, torch.bfloat16, compiled=True, options=options)
    assert merged.shape == shape
    assert bool(torch.isfinite(merged).all())


def test_float16_sums_do_not_overflow_on_the_way() -> None:
    method = methods.load("task_arithmetic")
    base, expert = torch.zeros(8, dtype=torch.float16), torch.full((8,), 40_000.0, dtype=torch.float16)
    out = torch.empty_like(base)
    # 3 · 40,000 is beyond float16; the sum is not.
    passes.run(method, method.OPTIONS, out, base, [expert, expert], {"weight": [3.0, -2.0]}, compiled=False)
    assert torch.equal(out, expert)
