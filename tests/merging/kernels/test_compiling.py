from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from evomerge.merging.kernels import compiling
from evomerge.merging.kernels.arguments import Arguments
from evomerge.merging.kernels.blocks import Options, Pass
from evomerge.merging.kernels.kernel import Kernel
from tests.helpers.merging import merge, merge_compiled, normal

needs_compiler = pytest.mark.skipif(not compiling.can_compile(torch.device("cpu")), reason="no C++ compiler here")


def _family(experts: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    base = normal(71, 97).bfloat16()
    return base, {"abc"[k]: (base + 0.02 * normal(71, 97, seed=k)).bfloat16() for k in range(experts)}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("experts", [1, 3])
def test_passes_with_arrays_for_each_expert_compile_for_any_number_of_experts(experts: int) -> None:
    given = _family(experts)
    with warnings.catch_warnings():
        # PyTorch warns of its own deprecated parts when its compiler is first imported.
        warnings.filterwarnings("error", message="merging without a compiler")
        fused = merge_compiled("della", *given, weight=0.5, density=0.4)
    assert not compiling.has_failed(torch.device("cpu"))
    assert torch.equal(fused, merge("della", *given, weight=0.5, density=0.4))


@needs_compiler
@pytest.mark.parametrize("method", ["dare_ties", "slerp"])
def test_the_pass_that_gpus_take_compiles_and_gives_the_same_bits(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def as_on_a_gpu(
        kernel: Kernel, options: Options, given: Arguments, tensors: list[torch.Tensor], lanes: torch.Tensor | None
    ) -> Pass:
        taken.append(kernel)
        return compiling.guarded_pass(kernel, options, given.layout, len(tensors) - 2)

    given = _family(1)
    eager = merge(method, *given, weight=0.5, density=0.4, t=0.3)
    monkeypatch.setattr(compiling, "compiled_pass", as_on_a_gpu)
    assert torch.equal(eager, merge_compiled(method, *given, weight=0.5, density=0.4, t=0.3))
    assert taken


@pytest.mark.slow
def test_a_compiler_that_does_not_work_costs_a_warning_and_no_candidate() -> None:
    code = """
import torch, warnings
from evomerge.merging import methods
from evomerge.merging.kernels import passes
method = methods.load("linear")
base, out, again = torch.ones(8192), torch.empty(8192), torch.empty(8192)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for target in (out, again):
        passes.run(method, method.OPTIONS, target, base, [base, 3 * base], {"weight": [0.5, 0.5]}, compiled=True)
ours = [w for w in caught if "merging without a compiler" in str(w.message)]
assert len(ours) == 1, caught
assert torch.equal(out, 2 * base) and torch.equal(again, out)
"""
    environment = {**os.environ, "CXX": "/bin/false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
