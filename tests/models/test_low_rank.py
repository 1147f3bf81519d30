"""A low-rank change is folded with the same bits, wherever the result is put."""

from __future__ import annotations

import pytest
import torch

from evomerge.models import low_rank


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_in_place_gives_the_bits_of_folding_into_a_new_tensor(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, left, right = (torch.randn(shape, generator=generator) for shape in ((70, 33), (70, 5), (5, 33)))
    weight = weight.to(dtype)
    untouched = weight.clone()
    fresh = low_rank.fold(weight, left, right, 0.7)
    assert torch.equal(weight, untouched)
    assert fresh.dtype == dtype
    assert low_rank.fold(weight, left, right, 0.7, out=weight) is weight
    assert torch.equal(weight, fresh)


def test_a_transposed_view_is_folded_in_place() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, left, right = (torch.randn(shape, generator=generator) for shape in ((33, 70), (70, 5), (5, 33)))
    expected = low_rank.fold(weight.T.contiguous(), left, right)
    low_rank.fold(weight.T, left, right, out=weight.T)
    assert torch.equal(weight.T, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_bits_of_a_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=generator) for shape in ((700, 513), (700, 9), (9, 513))]
    for dtype in (torch.float32, torch.bfloat16):
        weight, left, right = matrices[0].to(dtype), *matrices[1:]
        device = low_rank.fold(weight.cuda(), left.cuda(), right.cuda(), 0.7).cpu()
        assert torch.equal(device, low_rank.fold(weight, left, right, 0.7))


def test_folding_gives_the_same_bits_on_any_number_of_threads() -> None:
    torch.manual_seed(0)
    weight, left, right = torch.randn(700, 513).bfloat16(), torch.randn(700, 9), torch.randn(9, 513)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(low_rank.fold(weight, left, right, 0.7))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)
    expected = torch.zeros(700, 513)
    for k in range(9):
        expected = expected + left[:, k, None] * right[k]
    assert torch.equal(results[0], (0.7 * expected + weight.float()).bfloat16())
    exact = weight.double() + 0.7 * left.double() @ right.double()
    assert (results[0].double() - exact).abs().max() <= 2**-8 * exact.abs().max()
