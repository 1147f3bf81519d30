"""What `merging.kernels.compiling` takes of torch's private parts: a test each, whose message names what went."""

from __future__ import annotations

import importlib
from types import CodeType
from typing import Any

import pytest
import torch


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._inductor", "compile"),
        ("torch._dynamo.exc", "TorchDynamoException"),
        ("torch.utils._triton", "has_triton"),
        ("torch.fx.experimental.proxy_tensor", "make_fx"),
    ],
)
def test_torch_still_has_it(module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module), name, None)), f"torch no longer has {module}.{name}"


def test_has_triton_answers_yes_or_no() -> None:
    from torch.utils._triton import has_triton

    assert isinstance(has_triton(), bool), "torch.utils._triton.has_triton no longer returns a bool"  # type: ignore[no-untyped-call, unused-ignore]


def _traced() -> Any:
    """A graph whose sizes are left open, but for one."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def double_and_pick(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * 2 + y[3]

    return make_fx(double_and_pick, tracing_mode="symbolic")(torch.zeros(1009), torch.zeros(7))


def _inputs() -> list[Any]:
    return [node.meta.get("val") for node in _traced().graph.nodes if node.op == "placeholder"]


def test_make_fx_traces_with_open_sizes() -> None:
    values = _inputs()
    assert len(values) == 2, "make_fx's graphs no longer have a placeholder for each input"
    assert all(value is not None for value in values), 'placeholders no longer have node.meta["val"]'
    assert isinstance(values[0].shape[0], torch.SymInt), 'make_fx(tracing_mode="symbolic") no longer opens sizes'


def test_sizes_have_free_symbols() -> None:
    symbols = getattr(getattr(_inputs()[0].shape[0].node, "expr", None), "free_symbols", None)
    assert symbols, "SymInt.node.expr.free_symbols is gone or empty"


def test_traces_say_which_sizes_they_hold_for() -> None:
    _, picked = _inputs()
    environment = getattr(getattr(picked, "fake_mode", None), "shape_env", None)
    assert environment is not None, "FakeTensor.fake_mode.shape_env is gone"
    guards = getattr(environment, "guards", None)
    assert guards, "ShapeEnv.guards is gone, or has nothing of an index that a size must exceed"
    symbols = {symbol for guard in guards for symbol in guard.expr.free_symbols}
    assert picked.shape[0].node.expr.free_symbols <= symbols, "ShapeEnv.guards[...].expr no longer names the sizes"


def test_inductor_compiles_a_traced_graph() -> None:
    compiled = torch._inductor.compile(_traced(), _inputs())
    x, y = torch.arange(5.0), torch.arange(7.0)  # of another size than it was traced with
    assert compiled(x, y).tolist() == (x * 2 + 3).tolist(), (
        "torch._inductor.compile(graph, inputs) does something else"
    )


def test_compiled_versions_are_told_apart_by_code_objects() -> None:
    def one(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    assert isinstance(one.__code__.replace(co_name="other"), CodeType), "code objects can no longer be renamed"


def test_files_can_be_pinned_where_they_lie() -> None:
    assert callable(getattr(torch.cuda, "cudart", None)), "torch.cuda.cudart is gone"
