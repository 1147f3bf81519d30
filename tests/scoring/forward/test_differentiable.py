"""The head's gradient, streamed over the vocabulary."""

import pytest
import torch

from evomerge.scoring.forward import differentiable, head


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("chunk", [1 << 22, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_heads_gradient_is_streamed_and_exact(
    monkeypatch: pytest.MonkeyPatch, biased: bool, chunk: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 8, dtype=dtype), torch.randn(700, 8, dtype=dtype)
    bias = torch.randn(700, dtype=dtype) if biased else None
    leaves = [one.requires_grad_() for one in (hidden, weight, bias) if one is not None]
    where, tokens = torch.tensor([0, 1, 1, 2, 3, 4, 4]), torch.tensor([3, 699, 255, 256, 257, 3, 3])
    slope = torch.randn(7)

    def finish(logits: torch.Tensor) -> torch.Tensor:
        return torch.tanh(logits / 3.0) * 3.0

    scored = differentiable.logprobs(hidden, weight, bias, finish, where, tokens)
    mine = torch.autograd.grad(scored, leaves, slope)
    logits = hidden.float() @ weight.float().T + (0.0 if bias is None else bias.float())
    wanted = finish(logits).log_softmax(-1)[where, tokens]
    torch.testing.assert_close(scored, wanted, rtol=1e-5, atol=1e-5)
    one = 2.0**-8 if dtype == torch.bfloat16 else 1e-5
    for got, right in zip(mine, torch.autograd.grad(wanted, leaves, slope), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, right, rtol=2 * one, atol=1e-5)
