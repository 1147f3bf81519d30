"""The contract of every merge method, found by themselves; then what each one computes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from evomerge import plugins
from evomerge.errors import CandidateError
from evomerge.merging import methods
from evomerge.recipes.parameters import Parameter
from tests.helpers.merging import merge

METHODS = plugins.names("methods")
# The values that give an expert as it is.
WHOLE: dict[str, Any] = {"weight": 1.0, "density": 1.0, "t": 1.0, "gamma": 0.0, "epsilon": 0.0}
SOME: dict[str, Any] = {"weight": 0.5, "density": 0.5, "t": 0.4, "gamma": 0.1}
DROPPING = ["breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear", "ties"]


def test_all_methods_are_found() -> None:
    assert len(METHODS) == 19
    assert set(DROPPING) < set(METHODS)


def expert_count(name: str, wanted: int) -> int:
    """As many experts as wanted, or as near as the method allows."""
    fewest, most = methods.load(name).EXPERTS
    return max(fewest, min(wanted, most or wanted))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name: str) -> None:
    method = methods.load(name)
    assert method.__doc__
    assert "θ = " in method.__doc__
    assert all(isinstance(parameter, Parameter) for parameter in method.PARAMETERS)
    assert all(isinstance(default, bool) for default in method.OPTIONS.values())
    fewest, most = method.EXPERTS
    assert fewest >= 1
    assert most is None or most >= fewest
    assert isinstance(method.NEEDS_ELEMENT_NUMBERS, bool)
    for key in (*(parameter.name for parameter in method.PARAMETERS), *method.OPTIONS):
        assert f"`{key}`" in method.__doc__, f"{name}'s docstring lacks {key}"


def test_to_read_a_method_imports_no_torch() -> None:
    code = """
import sys
from evomerge import plugins
from evomerge.merging import methods
for name in plugins.names("methods"):
    assert methods.load(name).PARAMETERS
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "scipy"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


bases = st_numpy.arrays("float32", st.integers(0, 40), elements=st.floats(-4, 4, width=32)).map(torch.from_numpy)


def _neighbour(base: torch.Tensor, seed: int) -> torch.Tensor:
    return base + 0.1 * torch.randn(base.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", METHODS)
@given(base=bases)
@settings(max_examples=25, deadline=None)
def test_experts_equal_to_the_base_change_nothing(name: str, base: torch.Tensor) -> None:
    experts = {"abc"[k]: base.clone() for k in range(expert_count(name, 3))}
    torch.testing.assert_close(merge(name, base, experts, **SOME), base, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"arcee_fusion", "model_stock", "nuslerp"}))
@given(base=bases, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_one_whole_expert_gives_that_expert(name: str, base: torch.Tensor, seed: int) -> None:
    expert = _neighbour(base, seed)
    torch.testing.assert_close(merge(name, base, {"a": expert}, **WHOLE), expert, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear", "ties"])
@given(base=bases, low=st.floats(0.05, 0.9))
@settings(max_examples=25, deadline=None)
def test_raising_a_density_only_adds_kept_elements(name: str, base: torch.Tensor, low: float) -> None:
    expert = _neighbour(base, 1)
    kept = [
        # a fixed epsilon within reach of both densities
        merge(name, base, {"a": expert}, {"rescale": False}, weight=1.0, density=density, epsilon=0.04) != base
        for density in (low, min(1.0, low + 0.1))
    ]
    assert not bool((kept[0] & ~kept[1]).any())


@given(count=st.integers(1, 3000), density=st.floats(0.001, 1.0))
@settings(max_examples=50, deadline=None)
def test_trimming_keeps_the_density_exactly_to_one_element(count: int, density: float) -> None:
    base = torch.zeros(count)
    expert = torch.randn(count, generator=torch.Generator().manual_seed(count))
    for name in ("ties", "breadcrumbs"):
        kept = int((merge(name, base, {"a": expert}, weight=1.0, density=density) != 0).sum())
        assert abs(kept - max(1, density * count)) <= 1, name


@pytest.mark.slow
@pytest.mark.parametrize("name", DROPPING)
@pytest.mark.parametrize("density", [0.1, 0.37, 0.9])
def test_the_kept_fraction_of_large_tensors_is_the_density(name: str, density: float) -> None:
    count = 4_000_000  # at this size the spread of random masks is a quarter of the tolerance
    base = torch.zeros(count // 1000, 1000)
    expert = torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
    values: dict[str, Any] = {"weight": 1.0, "density": density, "epsilon": 0.09, "gamma": 0.01}
    kept = float((merge(name, base, {"a": expert}, **values) != 0).float().mean())
    assert abs(kept - density) < 0.001


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"arcee_fusion", "nearswap", "passthrough", "slerp"}))
def test_the_order_in_which_experts_are_listed_does_not_matter(name: str) -> None:
    base = torch.randn(64, generator=torch.Generator().manual_seed(0))
    experts = {"abc"[k]: _neighbour(base, k) for k in range(expert_count(name, 3))}
    forward = merge(name, base, experts, **SOME)
    backward = merge(name, base, dict(reversed(experts.items())), **SOME)
    assert torch.equal(forward, backward)


@pytest.mark.parametrize(
    "name",
    ["linear", "multislerp", "karcher", "task_arithmetic", "ties", "breadcrumbs", "sce", "model_stock", "ram"],
)
def test_what_an_expert_is_called_does_not_matter_without_masks(name: str) -> None:
    base = torch.randn(64, generator=torch.Generator().manual_seed(0))
    a, b = _neighbour(base, 1), _neighbour(base, 2)
    shared = {key: value for key, value in SOME.items() if key != "weight"}
    forward = merge(name, base, {"a": a, "b": b}, weight={"a": 0.3, "b": 0.6}, **shared)
    swapped = merge(name, base, {"a": b, "b": a}, weight={"a": 0.6, "b": 0.3}, **shared)
    torch.testing.assert_close(forward, swapped, rtol=1e-5, atol=1e-6)


def test_linear_is_the_weighted_mean() -> None:
    base, a, b = torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    assert merge("linear", base, {"a": a, "b": b}, weight={"a": 1, "b": 3}).tolist() == [2.5, 5.0]
    plain = merge("linear", base, {"a": a, "b": b}, {"normalize": False}, weight={"a": 1, "b": 3})
    assert plain.tolist() == [10.0, 20.0]


def test_task_arithmetic_adds_scaled_task_vectors() -> None:
    base, a, b = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([5.0])
    values: dict[str, Any] = {"weight": {"a": 0.5, "b": -1.0}, "lambda": 2.0}
    merged = merge("task_arithmetic", base, {"a": a, "b": b}, **values)
    assert merged.tolist() == [1.0 + 2.0 * (0.5 * 1.0 - 1.0 * 4.0)]


def test_dare_rescales_what_it_keeps() -> None:
    base, expert = torch.zeros(100_000), torch.ones(100_000)
    merged = merge("dare_linear", base, {"a": expert}, weight=1.0, density=0.25)
    assert set(merged.tolist()) == {0.0, 4.0}
    assert abs(float(merged.mean()) - 1.0) < 0.03


def test_dare_draws_other_masks_for_another_seed() -> None:
    base, expert = torch.zeros(1000), torch.ones(1000)
    first, second = (merge("dare_ties", base, {"a": expert}, None, s, weight=1.0, density=0.5) for s in (0, 1))
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
        keep[delta.abs().argsort(descending=True)[: max(1, int(density * delta.numel()))]] = 1
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
    values: dict[str, Any] = {"weight": weights, "density": density, "lambda": lam}
    ours = merge("ties", base, experts, **values)
    deltas = [expert - base for expert in experts.values()]
    theirs = _ties_reference(base, deltas, list(weights.values()), density, lam)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_breadcrumbs_leave_out_the_largest_and_the_smallest() -> None:
    base, expert = torch.zeros(10), torch.tensor([5.0, -1, 9, 2, -8, 3, 7, -4, 10, 6])
    merged = merge("breadcrumbs", base, {"a": expert}, weight=1.0, density=0.5, gamma=0.2)
    assert merged.tolist() == [5.0, 0, 0, 0, -8, 0, 7, -4, 0, 6]


def test_della_keeps_large_elements_more_often() -> None:
    base = torch.zeros(4000, 50)
    expert = torch.arange(1.0, 51.0).repeat(4000, 1)
    kept = merge("della_linear", base, {"a": expert}, {"rescale": False}, weight=1.0, density=0.5, epsilon=0.2) != 0
    rates = kept.float().mean(0)
    wanted = 0.3 + 0.4 * torch.arange(50) / 49
    assert float((rates - wanted).abs().max()) < 0.04  # five standard deviations of 4,000 throws


def test_della_gives_equal_magnitudes_their_mean_rank() -> None:
    base, expert = torch.zeros(4000, 40), torch.ones(4000, 40)
    kept = merge("della_linear", base, {"a": expert}, {"rescale": False}, weight=1.0, density=0.4, epsilon=0.3) != 0
    assert abs(float(kept.float().mean()) - 0.4) < 0.01


def test_della_keeps_the_l1_norm_in_expectation() -> None:
    base = torch.zeros(2000, 100)
    expert = torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
    merged = merge("della_linear", base, {"a": expert}, weight=1.0, density=0.4, epsilon=0.3)
    assert abs(float(merged.abs().sum() / expert.abs().sum()) - 1.0) < 0.01


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_rescaling_restores_the_l1_norm(name: str) -> None:
    expert = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    merged = merge(name, torch.zeros(1000), {"a": expert}, {"rescale": True}, weight=1.0, density=0.3, gamma=0.05)
    torch.testing.assert_close(merged.abs().sum(), expert.abs().sum(), rtol=1e-5, atol=0.0)


def test_the_karcher_mean_of_two_is_the_middle_of_their_arc() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    halfway = merge("karcher", torch.zeros(2), {"a": a, "b": b})
    torch.testing.assert_close(halfway, torch.tensor([0.5**0.5, 0.5**0.5]))
    third = merge("karcher", torch.zeros(2), {"a": a, "b": b}, weight={"a": 2.0, "b": 1.0})
    angle = torch.tensor(torch.pi / 6)
    torch.testing.assert_close(third, torch.stack([angle.cos(), angle.sin()]))


def test_multislerp_of_two_is_slerp_along_their_arc() -> None:
    base = torch.zeros(2)
    experts = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    merged = merge("multislerp", base, experts, weight=1.0)
    torch.testing.assert_close(merged, torch.tensor([0.5**0.5, 0.5**0.5]))


def test_opposed_experts_do_not_break_methods_that_go_by_angles() -> None:
    base = torch.randn(32, generator=torch.Generator().manual_seed(0))
    step = 0.1 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    for name in ("nuslerp", "multislerp", "karcher", "model_stock"):
        merged = merge(name, base, {"a": base + step, "b": base - step}, weight=1.0)
        assert bool(torch.isfinite(merged).all()), name
        assert float((merged - base).abs().max()) < 0.5, name


def test_model_stock_goes_all_the_way_where_experts_agree_and_nowhere_where_they_are_orthogonal() -> None:
    base = torch.zeros(4)
    same = torch.tensor([1.0, 2.0, 0.0, 0.0])
    torch.testing.assert_close(merge("model_stock", base, {"a": same, "b": same}), same)
    other = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert merge("model_stock", base, {"a": same, "b": other}).tolist() == [0.0] * 4


def test_filter_wise_model_stock_treats_each_row_by_itself() -> None:
    base = torch.zeros(2, 4)
    a = torch.tensor([[1.0, 2, 0, 0], [1, 0, 0, 0]])
    b = torch.tensor([[1.0, 2, 0, 0], [0, 1, 0, 0]])
    merged = merge("model_stock", base, {"a": a, "b": b}, {"filter_wise": True})
    torch.testing.assert_close(merged, torch.tensor([[1.0, 2, 0, 0], [0, 0, 0, 0]]))


def test_nearswap_moves_each_element_by_at_most_t() -> None:
    base, expert = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([0.05, -3.0, 0.2])
    torch.testing.assert_close(merge("nearswap", base, {"a": expert}, t=0.1), torch.tensor([0.05, -0.1, 0.1]))


def test_ram_averages_only_what_several_experts_changed() -> None:
    base = torch.zeros(3)
    a, b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    assert merge("ram", base, {"a": a, "b": b}).tolist() == [1.0, 3.0, 0.0]


def test_sce_weighs_experts_by_the_squares_of_what_was_selected() -> None:
    base = torch.zeros(4)
    a, b = torch.tensor([3.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    merged = merge("sce", base, {"a": a, "b": b}, select_topk=1.0)
    torch.testing.assert_close(merged, torch.tensor([(12 * 3 + 4) / 16, 1.0, 1.0, 1.0]))
    # The experts differ in one element alone, which is all that is selected.
    merged = merge("sce", base, {"a": a, "b": b}, select_topk=0.99)
    assert merged.tolist() == [0.0] * 4  # the whole number of 0.99 elements is none
    c = torch.tensor([3.0, 1.5, 1.0, 1.0])
    merged = merge("sce", base, {"a": c, "b": b}, select_topk=0.5)
    torch.testing.assert_close(merged, torch.tensor([(9 * 3 + 1) / 10, 0.0, 0.0, 0.0]))


def test_arcee_fusion_takes_over_only_what_stands_out() -> None:
    base = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    expert = base + 0.001 * torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    expert[3, 7] += 2.0
    merged = merge("arcee_fusion", base, {"a": expert})
    assert merged[3, 7] == expert[3, 7]
    assert float((merged != base).float().mean()) < 0.25


def test_passthrough_scales_the_expert() -> None:
    merged = merge("passthrough", torch.zeros(2), {"a": torch.tensor([1.0, -2.0])}, scale=0.5)
    assert merged.tolist() == [0.5, -1.0]


def test_weights_that_are_all_zero_give_numbers_all_the_same() -> None:
    base = torch.randn(8, generator=torch.Generator().manual_seed(0))
    experts = {"a": _neighbour(base, 1), "b": _neighbour(base, 2)}
    for name in ("nuslerp", "karcher", "task_arithmetic", "ties"):
        merged = merge(name, base, experts, weight=0.0, density=0.5)
        assert bool(torch.isfinite(merged).all()), name


@pytest.mark.parametrize("method", ["linear", "multislerp"])
def test_an_average_of_weights_that_add_up_to_zero_is_refused(method: str) -> None:
    base = torch.zeros(4)
    experts = {"a": torch.ones(4), "b": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    for weight in ({"a": 0.5, "b": -0.5}, {"a": 0.0, "b": 0.0}):
        with pytest.raises(CandidateError, match=r"the weights add up to 0 \("):
            merge(method, base, experts, weight=weight)
        merged = merge(method, base, experts, {"normalize": False}, weight=weight)
        assert bool(torch.isfinite(merged).all())


def test_more_steps_of_karcher_come_nearer_to_the_mean_and_a_coarse_tolerance_stops_early() -> None:
    generator = torch.Generator().manual_seed(0)
    experts = {name: torch.randn(3, generator=generator) for name in "abcd"}
    vectors = torch.stack([one / one.norm() for one in experts.values()]).double()

    def slope(**parameters: float) -> float:
        """How far the squared arcs to the vectors are from being shortest."""
        mean = merge("karcher", torch.zeros(3), experts, **parameters).double()
        mean = mean / mean.norm()
        along = (vectors @ mean).clamp(-1, 1)
        arcs = along.arccos()
        return float(((arcs / arcs.sin())[:, None] * (vectors - along[:, None] * mean)).mean(0).norm())

    start, one, ten, many = (slope(max_iter=steps, tol=0.0) for steps in (0.0, 1.0, 10.0, 1000.0))
    assert start > one > ten > many
    assert many < 1e-6
    assert slope(tol=0.12) == start
    assert slope(max_iter=1000.0, tol=1e-9) < 1e-6
