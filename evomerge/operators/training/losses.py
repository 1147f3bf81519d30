"""Divergences between a teacher's and a student's distributions of the next token.

P is the number of positions, V the size of the vocabulary. Both distributions are taken at a temperature T. The
loss is then multiplied by T², so that its gradients keep their size (Hinton et al. 2015, arXiv 1503.02531, section
2.1). The Jensen-Shannon divergence with β is GKD's (Agarwal et al. 2023, arXiv 2306.13649, eq. 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from evomerge.operators.training.settings import Divergence

_LEAST_LOG = -100.0  # stands for the logarithm of a probability of 0
_LEFT_OUT = -1e4  # stands for -infinity, which would have no gradient


@dataclass(frozen=True)
class Targets:
    """A teacher's answers at P positions.

    Attributes:
        logs: log-probabilities of all tokens, (P, V); or of k tokens and of all others together, (P, k + 1).
        tokens: these k tokens, int64 (P, k), distinct in each row; None where `logs` has all tokens.
    """

    logs: Tensor
    tokens: Tensor | None = None


def distillation(
    logits: Tensor, targets: Targets, kind: Divergence, *, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """T² times the divergence at each position, float32 (P,).

    The tokens that the teacher's answers leave out count together as one more token, on both sides.

    Args:
        logits: the student's, (P, V), at temperature 1.
        targets: the teacher's answers, at `temperature` already.
        beta: the teacher's share of the mixture in `jsd`.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = targets.logs.to(student.device).float()
    if targets.tokens is not None:
        student = kept(student, targets.tokens.to(student.device))
    return temperature**2 * divergence(teacher, student, kind, beta)


def divergence(teacher: Tensor, student: Tensor, kind: Divergence, beta: float = 0.5) -> Tensor:
    """The divergence at each position, float32 (P,).

    Args:
        teacher, student: log-probabilities, (P, n).
        beta: the teacher's share of the mixture in `jsd`, between 0 and 1.
    """
    teacher, student = teacher.clamp(min=_LEAST_LOG), student.clamp(min=_LEAST_LOG)
    if kind == "forward_kl":
        return _kl(teacher, student)
    if kind == "reverse_kl":
        return _kl(student, teacher)
    shares = torch.tensor([beta, 1.0 - beta], device=teacher.device).log()
    mixture = torch.logaddexp(teacher + shares[0], student + shares[1])
    return beta * _kl(teacher, mixture) + (1.0 - beta) * _kl(student, mixture)


def kept(logs: Tensor, tokens: Tensor) -> Tensor:
    """The log-probabilities of k tokens, and behind them that of all other tokens together: (P, k + 1).

    The others are summed, for 1 less the sum of the k tokens would be mere rounding where the others are few.

    Args:
        logs: log-probabilities of all tokens, (P, V).
        tokens: the k tokens of each position, int64 (P, k).
    """
    rest = logs.scatter(1, tokens, _LEFT_OUT).logsumexp(1, keepdim=True).clamp(min=_LEAST_LOG)
    return torch.cat([logs.gather(1, tokens), rest], dim=1)


def mixed(logits: Tensor, labels: Tensor, soft: Tensor | None, hard: float) -> Tensor:
    """(1 - hard) · soft + hard · cross-entropy at each position, float32 (P,).

    Args:
        logits: the student's, (P, V).
        labels: the texts' own tokens, int64 (P,).
        soft: the divergence from the teacher, (P,); None where `hard` is 1.
        hard: the share of the cross-entropy.
    """
    if soft is not None and hard == 0.0:
        return soft
    entropy = F.cross_entropy(logits.float(), labels, reduction="none")
    return entropy if soft is None else (1.0 - hard) * soft + hard * entropy


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) at each position, (P,), of log-probabilities (P, n)."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
