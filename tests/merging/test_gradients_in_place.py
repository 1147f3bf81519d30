"""Taking gradients costs the memory of one, leaves nothing behind, and does not depend on how it is done."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.merging import gradients
from evomerge.merging.merger import Merger
from evomerge.recipes.recipe import Recipe
from evomerge.searching.spaces import decoding
from evomerge.studies.candidates.workbench import Workbench
from tests.helpers.gradients import (
    everything,
    laid,
    open_bench,
    pulled,
    some_genome,
)


def some_recipe(bench: Workbench, method: str = "task_arithmetic") -> Recipe:
    chosen = everything(method)
    return decoding.decode(chosen, laid(bench), some_genome(chosen, laid(bench)))


@contextmanager
def counted(bench: Workbench) -> Iterator[list[int]]:
    """How many parameters' gradients are alive whenever one more has come, the new one included."""
    seen: list[weakref.ref[torch.Tensor]] = []
    counts: list[int] = []

    def count(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        seen.append(weakref.ref(parameter.grad))
        counts.append(sum(one() is not None for one in seen))

    hooks = []
    for parameter in bench.model.parameters():
        parameter.requires_grad_(True)
        hooks.append(parameter.register_post_accumulate_grad_hook(count))
    yield counts
    for hook in hooks:
        hook.remove()


def test_one_parameters_gradient_is_alive_at_once(family: Path, tmp_path: Path) -> None:
    bench = open_bench(family, tmp_path)
    assert bench.scorer is not None
    number = len(list(bench.model.parameters()))
    documents = {"first": range(6), "second": range(6)}
    with counted(bench) as kept:
        bench.scorer.backward(documents, {"first": ("margin", 1.0), "second": ("margin", 1.0)})
    assert max(kept) == number  # where nobody takes them
    bench.model.zero_grad()
    with counted(bench) as counts:
        bench.gradient(some_recipe(bench))
    assert len(counts) >= number
    assert set(counts) == {1}


def assert_untouched(bench: Workbench) -> None:
    for name, parameter in bench.model.named_parameters():
        assert parameter.grad is None, name
        assert parameter.requires_grad == ("norm" not in name), name
        assert not parameter._post_accumulate_grad_hooks, name
    for module in bench.model.modules():
        assert "forward" not in module.__dict__


def test_nothing_is_left_behind(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = open_bench(family, tmp_path)
    for name, parameter in bench.model.named_parameters():
        parameter.requires_grad_("norm" not in name)
    _, wanted = bench.gradient(some_recipe(bench))
    assert_untouched(bench)
    whole = gradients.pull_back
    calls = []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("provoked")
        return whole(*arguments)

    monkeypatch.setattr(gradients, "pull_back", failing)
    with pytest.raises(RuntimeError, match="provoked"):
        bench.gradient(some_recipe(bench))
    assert_untouched(bench)
    assert bench.gradient(some_recipe(bench))[1] == wanted


def test_a_pass_that_runs_out_of_memory_half_way_is_not_counted_twice(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(family, tmp_path)
    _, wanted = bench.gradient(some_recipe(bench))
    whole = gradients.pull_back
    calls = []

    def short(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise torch.OutOfMemoryError("provoked")
        return whole(*arguments)

    monkeypatch.setattr(gradients, "pull_back", short)
    score, found = bench.gradient(some_recipe(bench))
    assert len(calls) > 2 * 38
    for row, experts in wanted["weight"].items():
        for expert, slopes_of in experts.items():
            assert found["weight"][row][expert] == pytest.approx(slopes_of, rel=1e-4, abs=1e-6)
    assert len(score.report.tasks["first"].documents) == 6


def test_where_the_checkpoints_lie_changes_nothing(family: Path, tmp_path: Path) -> None:
    bench = open_bench(family, tmp_path)
    recipe = some_recipe(bench, "dare_ties")
    _, wanted = bench.gradient(recipe)
    for residency in ("resident", "streamed"):
        held = bench.merger
        bench.merger = Merger(held.weights, held.base, held.experts, tmp_path, residency=residency)
        assert bench.gradient(recipe)[1] == wanted


@pytest.mark.slow
def test_blocks_change_nothing_but_the_last_digits(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(family, tmp_path)
    for method in ("dare_ties", "della", "nuslerp"):
        chosen = everything(method, {"flatten": False, "row_wise": True} if method == "nuslerp" else {})
        genome = some_genome(chosen, laid(bench))
        monkeypatch.setattr(gradients, "_BLOCK", 1 << 17)
        wanted = pulled(bench, chosen, genome)
        monkeypatch.setattr(gradients, "_BLOCK", 100)
        found = pulled(bench, chosen, genome)
        largest = max(map(abs, wanted.values()))
        assert found == {name: pytest.approx(slope, rel=1e-4, abs=1e-6 * largest) for name, slope in wanted.items()}


def test_a_gradient_that_is_not_finite_is_no_gradient(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(family, tmp_path)
    whole = gradients.pull_back
    monkeypatch.setattr(gradients, "pull_back", lambda part, g, *rest: whole(part, g * math.inf, *rest))
    with pytest.raises(CandidateError, match=r"model.embed_tokens.weight: the derivative in weight is not finite"):
        bench.gradient(some_recipe(bench))
