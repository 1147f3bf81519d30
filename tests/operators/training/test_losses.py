from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from evomerge.operators.training import losses
from evomerge.operators.training.losses import Targets
from evomerge.operators.training.settings import Divergence

KINDS: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "jsd")
SEEDS, TEMPERATURES, BETAS = st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.floats(0.05, 0.95)


def logits(seed: int, positions: int = 5, vocabulary: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(3.0 * torch.randn(positions, vocabulary, generator=generator) for _ in range(2))  # type: ignore[return-value]


def plain(kind: Divergence, teacher: Tensor, student: Tensor, temperature: float, beta: float) -> Tensor:
    """The divergence of dense logits by `kl_div` on probabilities, in float64."""
    p, q = ((one.double() / temperature).softmax(1) for one in (teacher, student))

    def kl(first: Tensor, second: Tensor) -> Tensor:
        return F.kl_div(second.log(), first, reduction="none").sum(1)

    mixture = beta * p + (1 - beta) * q
    found = {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jsd": beta * kl(p, mixture) + (1 - beta) * kl(q, mixture),
    }
    return temperature**2 * found[kind]


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.sampled_from(KINDS), TEMPERATURES, BETAS)
def test_divergences_are_those_of_the_papers(seed: int, kind: Divergence, temperature: float, beta: float) -> None:
    teacher, student = logits(seed)
    targets = Targets((teacher / temperature).log_softmax(1))
    found = losses.distillation(student, targets, kind, temperature=temperature, beta=beta)
    assert torch.allclose(found.double(), plain(kind, teacher, student, temperature, beta), atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.sampled_from(KINDS), TEMPERATURES, BETAS)
def test_all_tokens_kept_are_the_dense_ones(seed: int, kind: Divergence, temperature: float, beta: float) -> None:
    teacher, student = logits(seed)
    student.requires_grad_()
    dense = (teacher / temperature).log_softmax(1)
    every = torch.arange(dense.shape[1]).flip(0).expand_as(dense)
    found = []
    for targets in (Targets(dense), Targets(losses.kept(dense, every), every)):
        loss = losses.distillation(student, targets, kind, temperature=temperature, beta=beta)
        found.append((loss, torch.autograd.grad(loss.sum(), student)[0]))
    assert torch.allclose(found[0][0], found[1][0], atol=2e-5, rtol=1e-4)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4, rtol=1e-3)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.sampled_from(KINDS), st.integers(1, 10))
def test_what_is_left_out_is_one_more_token(seed: int, kind: Divergence, k: int) -> None:
    teacher, student = logits(seed)
    best = teacher.topk(k, dim=1).indices
    found = losses.distillation(student, Targets(losses.kept(teacher.log_softmax(1), best), best), kind)

    def merged(one: Tensor) -> Tensor:
        p = one.double().softmax(1)
        rest = p.scatter(1, best, 0.0).sum(1, keepdim=True)
        return torch.cat([p.gather(1, best), rest], dim=1).log()

    wanted = plain(kind, merged(teacher), merged(student), 1.0, 0.5)
    assert torch.allclose(found.double(), wanted, atol=1e-4, rtol=1e-3)
    dense = plain(kind, teacher, student, 1.0, 0.5)
    assert bool((wanted <= dense + 1e-9).all())  # merging tokens can only lose some of a divergence


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_have_no_divergence_and_no_gradient(kind: Divergence) -> None:
    teacher, _ = logits(0)
    student = teacher.clone().requires_grad_()
    loss = losses.distillation(student, Targets(teacher.log_softmax(1)), kind)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert float(loss.detach().abs().max()) < 1e-6
    assert float(student.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_cannot_come_does_no_harm(kind: Divergence) -> None:
    teacher, student = logits(1)
    teacher[:, 3] = -torch.inf
    student.requires_grad_()
    loss = losses.distillation(student, Targets(teacher.log_softmax(1)), kind)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert bool(loss.isfinite().all() and student.grad.isfinite().all())


def test_a_student_that_leaves_nothing_to_the_rest_is_told_to() -> None:
    teacher, student = torch.zeros(1, 6), torch.tensor([[30.0, 0.0, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    best = torch.tensor([[0]])
    targets = Targets(losses.kept(teacher.log_softmax(1), best), best)
    losses.distillation(student, targets, "forward_kl").sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert float(student.grad[0, 0]) == pytest.approx(5 / 6, abs=1e-3)


def test_hard_labels_are_mixed_in() -> None:
    teacher, student = logits(2)
    labels = torch.arange(5)
    soft = losses.distillation(student, Targets(teacher.log_softmax(1)), "forward_kl")
    entropy = F.cross_entropy(student, labels, reduction="none")
    assert torch.equal(losses.mixed(student, labels, soft, 0.0), soft)
    assert torch.equal(losses.mixed(student, labels, None, 1.0), entropy)
    assert torch.allclose(losses.mixed(student, labels, soft, 0.25), 0.75 * soft + 0.25 * entropy)
