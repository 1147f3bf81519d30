from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evomerge.errors import CandidateError
from evomerge.operators.training import forward, loop
from evomerge.operators.training.corpus import Row
from evomerge.operators.training.loop import Course, Sample, train


def samples(rows: Sequence[Row], domain: str = "ants") -> list[Sample]:
    return [Sample(row, domain, number) for number, row in enumerate(rows)]


def entropy(model: Any) -> loop.Losses:
    def losses(given: Sequence[Sample]) -> Tensor:
        logits, labels = forward.logits(model, [sample.row for sample in given])
        return F.cross_entropy(logits, labels, reduction="none")

    return losses


def run(model: Any, rows: Sequence[Row], course: Course, **rest: Any) -> loop.Trained:
    parameters = list(model.parameters())
    with forward.training(model, parameters, 64, checkpointing=False):
        return train(parameters, entropy(model), lambda step: {"ants": samples(rows)}, course, **rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_falls_in_every_dtype(dtype: torch.dtype, model: Any, make_rows: Any) -> None:
    course = Course(steps=15, lr=1e-2, scale=1024.0 if dtype == torch.float16 else 1.0)
    trained = run(model.to(dtype), make_rows(6), course)
    assert trained.curve[-1] < 0.7 * trained.curve[0]
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_small_steps_of_a_bfloat16_model_add_up(model: Any, make_rows: Any) -> None:
    # Each is far below the weights' precision: what moves them is the float32 copy.
    model.bfloat16()
    before = model.lm_head.weight.clone()
    run(model, make_rows(6), Course(steps=1, lr=1e-4, warmup=0.0))
    once = (model.lm_head.weight != before).float().mean()
    run(model, make_rows(6), Course(steps=40, lr=1e-4, warmup=0.0))
    assert float((model.lm_head.weight != before).float().mean()) > 4 * float(once)


def test_a_step_is_adamws(model: Any, make_rows: Any) -> None:
    import copy

    rows, other = make_rows(5), copy.deepcopy(model)
    run(model, rows, Course(steps=1, lr=1e-3, warmup=0.0, clip=0.5, batch_tokens=20))
    other.requires_grad_(True)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.0)
    entropy(other)(samples(rows)).mean().backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(other.parameters(), 0.5)
    optimizer.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=2e-5)


def test_domains_count_alike(model: Any, make_rows: Any) -> None:
    few, many = samples([Row((4, 5), 1)], "few"), samples([Row(tuple(range(4, 14)), 1)] * 3, "many")
    losses = entropy(model)
    wanted = 0.5 * losses(few).mean() + 0.5 * losses(many).mean()
    assert loop.mean_loss(losses, {"few": few, "many": many}, 12) == pytest.approx(float(wanted))


def test_budgets_are_exceeded_by_no_more_than_a_step(model: Any, make_rows: Any) -> None:
    rows = make_rows(4)
    each = sum(len(row.ids) for row in rows)
    trained = run(model, rows, Course(steps=50, lr=1e-3, tokens=3 * each + 1))
    assert (trained.steps, trained.tokens) == (4, 4 * each)
    assert run(model, rows, Course(steps=3, lr=1e-3, tokens=10**6)).steps == 3


def test_seconds_end_training(model: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("evomerge.operators.training.loop.time.monotonic", lambda: float(next(clock)))
    assert run(model, make_rows(2), Course(steps=50, lr=1e-3, seconds=5.0)).steps == 4


def test_the_learning_rate_rises_and_falls() -> None:
    course = Course(steps=10, lr=1.0, warmup=0.3)
    heights = [loop.height(course, step, 0) for step in range(10)]
    assert heights[:3] == sorted(heights[:3])
    assert heights[3:] == sorted(heights[3:], reverse=True)
    assert 0.0 < heights[-1] < 0.05
    linear = Course(steps=10, lr=1.0, warmup=0.0, decay="linear", tokens=100)
    assert loop.height(linear, 5, 0) == 0.5
    assert loop.height(linear, 5, 80) == pytest.approx(0.2)


def test_progress_is_told(model: Any, make_rows: Any) -> None:
    told: list[tuple[int, Mapping[str, float]]] = []
    trained = run(model, make_rows(2), Course(steps=2, lr=1e-3), report=lambda step, m: told.append((step, m)))
    assert [step for step, _ in told] == [1, 2]
    assert [measured["loss"] for _, measured in told] == list(trained.curve)
    assert {"lr", "norm"} <= set(told[0][1])


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (lambda weight: weight * torch.nan, "step 1: its loss is nan"),
        (lambda weight: weight.abs().sqrt(), "step 1: its gradient is nan"),
    ],
)
def test_what_is_not_finite_is_told(losses: Callable[[Tensor], Tensor], told: str) -> None:
    weight = nn.Parameter(torch.zeros(1))
    supply = {"ants": samples([Row((4, 5), 1)])}
    with pytest.raises(CandidateError, match=told):
        train([weight], lambda given: losses(weight), lambda step: supply, Course(steps=3, lr=1.0))
