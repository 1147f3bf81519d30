"""The contract of every merge method, found by themselves; then what each one computes."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from evomerge import kernels, plugins, statistics
from evomerge.methods import Parameter, TensorInputs

METHODS = plugins.names("methods")


def test_all_methods_are_found() -> None:
    assert {"linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name: str) -> None:
    method = plugins.load("methods", name)
    assert method.__doc__
    assert "θ" in method.__doc__
    assert all(isinstance(parameter, Parameter) for parameter in method.PARAMETERS)
    assert all(isinstance(default, bool) for default in method.OPTIONS.values())
    fewest, most = method.EXPERTS
    assert fewest >= 1
    assert most is None or most >= fewest
    assert {"magnitude", "cosine"} >= method.TABLES
    for parameter in method.PARAMETERS:
        assert f"`{parameter.name}`" in method.__doc__, f"{name}'s docstring lacks {parameter.name}"


def merge(
    name: str,
    base: torch.Tensor,
    experts: Mapping[str, torch.Tensor],
    options: Mapping[str, bool] | None = None,
    seed: int = 0,
    **values: Any,
) -> torch.Tensor:
    """One tensor merged, with its tables computed on the spot."""
    method: ModuleType = plugins.load("methods", name)
    names = tuple(sorted(experts))
    tables = {
        expert: statistics.Statistics(
            "magnitude", {"t": statistics.magnitudes(base, experts[expert])}, {"t": base.numel()}
        )
        for expert in names
    }
    chosen = {**method.OPTIONS, **(options or {})}
    defaults = {p.name: p.default for p in method.PARAMETERS}
    given_values = {
        p.name: tuple(_per_expert(values.get(p.name, defaults[p.name]), names) if p.per_expert else ())
        or (float(values.get(p.name, defaults[p.name])),)
        for p in method.PARAMETERS
    }
    inputs = TensorInputs(
        name="t",
        experts=names,
        values=given_values,
        options=chosen,
        seed=seed,
        threshold=lambda expert, density: tables[expert].threshold("t", density),
        cosine={expert: float(statistics.cosine(base, experts[expert])[0]) for expert in names},
    )
    out = torch.empty_like(base)
    kernels.run(method, chosen, out, base, [experts[e] for e in names], method.scalars(inputs), compiled=False)
    return out


def _per_expert(value: Any, names: tuple[str, ...]) -> list[float]:
    return [float(value[name]) if isinstance(value, Mapping) else float(value) for name in names]


tensors = st_numpy.arrays("float32", st.integers(1, 40), elements=st.floats(-4, 4, width=32)).map(torch.from_numpy)


def _neighbour(base: torch.Tensor, seed: int) -> torch.Tensor:
    return base + 0.1 * torch.randn(base.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", METHODS)
@given(base=tensors)
@settings(max_examples=25, deadline=None)
def test_experts_equal_to_the_base_change_nothing(name: str, base: torch.Tensor) -> None:
    experts = {"a": base.clone()} if name == "slerp" else {"a": base.clone(), "b": base.clone()}
    merged = merge(name, base, experts, weight=0.5, density=0.5, t=0.4)
    torch.testing.assert_close(merged, base, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
@given(base=tensors, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_one_whole_expert_gives_that_expert(name: str, base: torch.Tensor, seed: int) -> None:
    expert = _neighbour(base, seed)
    merged = merge(name, base, {"a": expert}, weight=1.0, density=1.0, t=1.0)
    torch.testing.assert_close(merged, expert, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties"])
@given(base=tensors, low=st.floats(0.05, 0.9))
@settings(max_examples=25, deadline=None)
def test_raising_a_density_only_adds_kept_elements(name: str, base: torch.Tensor, low: float) -> None:
    expert = _neighbour(base, 1)
    kept = [
        merge(name, base, {"a": expert}, {"rescale": False}, weight=1.0, density=density) != base
        for density in (low, min(1.0, low + 0.1))
    ]
    assert not bool((kept[0] & ~kept[1]).any())


@given(count=st.integers(1, 3000), density=st.floats(0.001, 1.0))
@settings(max_examples=50, deadline=None)
def test_trimming_keeps_the_density_exactly_to_one_element(count: int, density: float) -> None:
    base = torch.zeros(count)
    expert = torch.randn(count, generator=torch.Generator().manual_seed(count))
    kept = int((merge("ties", base, {"a": expert}, weight=1.0, density=density) != 0).sum())
    assert abs(kept - max(1, density * count)) <= 1


def test_the_order_in_which_experts_are_listed_does_not_matter() -> None:
    base = torch.randn(64, generator=torch.Generator().manual_seed(0))
    a, b, c = (_neighbour(base, seed) for seed in (1, 2, 3))
    for name in set(METHODS) - {"slerp"}:
        forward = merge(name, base, {"a": a, "b": b, "c": c}, weight=0.6, density=0.5)
        backward = merge(name, base, {"c": c, "b": b, "a": a}, weight=0.6, density=0.5)
        assert torch.equal(forward, backward), name


def test_linear_is_the_weighted_mean() -> None:
    base, a, b = torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    assert merge("linear", base, {"a": a, "b": b}, weight={"a": 1, "b": 3}).tolist() == [2.5, 5.0]
    plain = merge("linear", base, {"a": a, "b": b}, {"normalize": False}, weight={"a": 1, "b": 3})
    assert plain.tolist() == [10.0, 20.0]


def test_task_arithmetic_adds_scaled_task_vectors() -> None:
    base, a, b = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([5.0])
    merged = merge("task_arithmetic", base, {"a": a, "b": b}, weight={"a": 0.5, "b": -1.0}, **{"lambda": 2.0})
    assert merged.tolist() == [1.0 + 2.0 * (0.5 * 1.0 - 1.0 * 4.0)]


def test_dare_rescales_what_it_keeps() -> None:
    base, expert = torch.zeros(100_000), torch.ones(100_000)
    merged = merge("dare_linear", base, {"a": expert}, weight=1.0, density=0.25)
    assert set(merged.unique().tolist()) == {0.0, 4.0}
    assert abs(float(merged.mean()) - 1.0) < 0.03


def test_dare_draws_other_masks_for_another_seed() -> None:
    base, expert = torch.zeros(1000), torch.ones(1000)
    first, second = (merge("dare_ties", base, {"a": expert}, seed=s, weight=1.0, density=0.5) for s in (0, 1))
    assert not torch.equal(first, second)


def test_slerp_goes_along_the_arc() -> None:
    base, expert = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    halfway = merge("slerp", base, {"a": expert}, t=0.5)
    torch.testing.assert_close(halfway, torch.tensor([0.5**0.5, 0.5**0.5]))
    assert torch.equal(merge("slerp", base, {"a": expert}, t=0.0), base)


def test_slerp_is_plain_interpolation_where_tensors_are_parallel() -> None:
    base = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(merge("slerp", base, {"a": 3 * base}, t=0.5), 2 * base)


def _ties_reference(
    base: torch.Tensor, deltas: list[torch.Tensor], weights: list[float], density: float, lam: float
) -> torch.Tensor:
    """TIES as the paper writes it, by sorting: trim, elect, disjoint weighted mean."""
    trimmed = []
    for delta in deltas:
        keep = torch.zeros_like(delta)
        keep[delta.abs().argsort(descending=True)[: max(1, round(density * delta.numel()))]] = 1
        trimmed.append(delta * keep)
    weighted = torch.stack([w * t for w, t in zip(weights, trimmed, strict=True)])
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agrees = weighted.sign() == sign
    divisor = (torch.tensor(weights)[:, None] * agrees).sum(0)
    return base + lam * (weighted * agrees).sum(0) / torch.where(divisor == 0, 1.0, divisor)


@given(st.integers(0, 1000), st.integers(2, 4), st.floats(0.05, 1.0), st.floats(0.5, 1.5))
@settings(max_examples=40, deadline=None)
def test_ties_equals_the_paper_by_sorting(seed: int, count: int, density: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(257, generator=generator)
    experts = {"abcd"[k]: base + torch.randn(257, generator=generator) for k in range(count)}
    weights = {name: 0.3 + 0.4 * k for k, name in enumerate(experts)}
    ours = merge("ties", base, experts, weight=weights, density=density, **{"lambda": lam})
    deltas = [expert - base for expert in experts.values()]
    theirs = _ties_reference(base, deltas, list(weights.values()), density, lam)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
