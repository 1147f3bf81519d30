"""Every method against mergekit's own results, stored by tests/mergekit_reference.py.

What is deliberately not mergekit's, and how it is dealt with here:

- Elements whose magnitude ties with a threshold: ours keeps all of them, mergekit's sort an arbitrary few; DELLA's
  ranks of equal magnitudes are as arbitrary. `_arbitrary` finds just these elements, and they are not compared.
- `rescale` in DARE and DELLA: ours is the expected factor, mergekit's the realised one. The reference is mergekit's
  unrescaled merge times our factor (`mergekit_reference._scaled`).
- SCE's absolute guards (1e-6) and the sampling of Arcee Fusion above 10⁶ elements: no case is that small or large.
- Directions that cancel exactly in Multi-SLERP (single numbers of opposite signs and equal weights): mergekit goes
  where a float32 rounding error points, or stops. No case is like that.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge import plugins
from tests.helpers import mergekit_reference
from tests.helpers.mergekit_reference import Case
from tests.helpers.merging import merge

CASES, RESULTS, ABOUT = mergekit_reference.load()

# float32: what reordering sums and products costs, and mergekit's arc cosines in float32; half of it is in use.
RTOL, ATOL = 3e-6, 3e-7
ROUNDED_OTHERWISE = 0.02  # the share of bfloat16 elements near enough to a rounding boundary for such an error

NOT_OURS = {"ramplus_tl"}  # mergekit's methods that evomerge lacks


def test_every_method_has_stored_results_of_mergekit() -> None:
    covered = {case.method for case in CASES.values()}
    assert covered == set(plugins.names("methods"))
    assert covered == set(ABOUT["methods"]) - NOT_OURS
    assert len(covered) == 19


def test_the_stored_cases_are_those_of_the_script() -> None:
    assert ABOUT["mergekit"] == "0.1.5"
    assert {case.id: case for case in mergekit_reference.cases()} == CASES
    assert RESULTS.keys() == CASES.keys()


@pytest.mark.parametrize("method", sorted({case.method for case in CASES.values()}))
def test_each_method_is_compared_in_both_types_and_several_shapes(method: str) -> None:
    mine = [case for case in CASES.values() if case.method == method]
    assert {case.dtype for case in mine} == {"float32", "bfloat16"}
    assert len({case.shape for case in mine}) >= 3


@pytest.mark.parametrize("name", CASES)
def test_a_merge_equals_mergekits(name: str) -> None:
    case, theirs = CASES[name], RESULTS[name]
    base, experts = mergekit_reference.inputs(case)
    values: dict[str, Any] = dict(case.values)
    ours = merge(case.method, base, experts, case.options, case.seed, **values)
    assert ours.dtype == theirs.dtype
    compared = ~_arbitrary(case, base, experts)
    assert float(compared.float().mean()) > 0.7
    if case.dtype == "float32":
        torch.testing.assert_close(ours[compared], theirs[compared], rtol=RTOL, atol=ATOL)
    else:
        _assert_equal_but_for_rounding(ours[compared], theirs[compared])


def _assert_equal_but_for_rounding(ours: Tensor, theirs: Tensor) -> None:
    """At most one bfloat16 step apart anywhere, and equal nearly everywhere."""
    steps = (_ordinal(ours) - _ordinal(theirs)).abs()
    steps[(ours.float() - theirs.float()).abs() <= ATOL] = 0  # near 0 a step is smaller than float32's errors here
    assert int(steps.max()) <= 1
    assert int((steps > 0).sum()) <= max(1, ROUNDED_OTHERWISE * steps.numel())


def _ordinal(numbers: Tensor) -> Tensor:
    """The place of each bfloat16 number among all of them; neighbours differ by 1."""
    pattern = numbers.contiguous().view(torch.int16).int()
    return torch.where(pattern >= 0, pattern, -(pattern & 0x7FFF))


# --- elements that mergekit keeps or drops arbitrarily -----------------------------------------------------


def _arbitrary(case: Case, base: Tensor, experts: dict[str, Tensor]) -> Tensor:
    """Where mergekit's result hangs on the order in which its sort leaves equal magnitudes; of base's shape."""
    deltas = {name: expert.float() - base.float() for name, expert in experts.items()}
    found = torch.zeros(base.shape, dtype=torch.bool)
    if case.method == "sce":
        variance = torch.stack(list(deltas.values())).double().var(0, unbiased=False)
        kept = int(case.value("select_topk", "a") * int(variance.count_nonzero()))
        return _ties_at(variance, [base.numel() - kept])
    for name, delta in deltas.items():
        if case.method.startswith("della"):
            found |= _ties_in_rows(delta.abs())
        if case.method in ("ties", "breadcrumbs", "breadcrumbs_ties"):
            found |= _ties_at(delta.abs(), _cuts(case, name, base.numel()))
    return found


def _cuts(case: Case, expert: str, count: int) -> list[int]:
    """The places where mergekit cuts the ascending magnitudes of an expert."""
    density = case.value("density", expert)
    if density >= 1:
        return []
    if case.method == "ties":
        return [count - max(1, int(density * count))]
    kept, outliers = int(density * count), int(case.value("gamma", expert) * count)
    lowest = max(0, count - kept - outliers)
    return [lowest, lowest + kept]


def _ties_at(sizes: Tensor, cuts: list[int]) -> Tensor:
    """Where `sizes` equals, and is not 0, what lies on both sides of a cut through its ascending order."""
    ascending = sizes.flatten().sort().values
    found = torch.zeros_like(sizes, dtype=torch.bool)
    for cut in cuts:
        if 0 < cut < len(ascending) and ascending[cut - 1] == ascending[cut] != 0:
            found |= sizes == ascending[cut]
    return found


def _ties_in_rows(sizes: Tensor) -> Tensor:
    """Where an element's size, not 0, is also another's of its row (the last dimension)."""
    equal = sizes[..., :, None] == sizes[..., None, :]
    return (equal.sum(-1) > 1) & (sizes != 0)
