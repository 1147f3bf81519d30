"""Divergences between a teacher's and a student's distributions of the next token.

Of P positions and a vocabulary of V. Both are taken at a temperature T; the loss is then multiplied by T², so that
its gradients keep their size (Hinton et al. 2015, arXiv 1503.02531, section 2.1). The Jensen-Shannon divergence
with β is GKD's (Agarwal et al. 2023, arXiv 2306.13649, eq. 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from evomerge.operators.training.settings import Divergence

_LEAST_LOG = -100.0  # a probability of 0 has no logarithm


_LEFT_OUT = -1e4  # for infinity, which would have no gradient


@dataclass(frozen=True)
class Targets:
    """A teacher's answers at P positions.

    Attributes:
        logs: (P, V) log-probabilities of all tokens; or (P, k + 1), see `kept`.
        tokens: int64 (P, k), distinct in each row.
    """

    logs: Tensor
    tokens: Tensor | None = None


def distillation(
    logits: Tensor, targets: Targets, kind: Divergence, *, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """T² times the divergence at each position, float32 (P,).

    Tokens that the teacher's answers leave out are together one more token, for both sides.

    Args:
        logits: the student's, (P, V), at temperature 1.
        targets: at `temperature` already.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = targets.logs.to(student.device).float()
    if targets.tokens is not None:
        student = kept(student, targets.tokens.to(student.device))
    return temperature**2 * divergence(teacher, student, kind, beta)


def divergence(teacher: Tensor, student: Tensor, kind: Divergence, beta: float = 0.5) -> Tensor:
    """The divergence of each row, float32 (P,).

    teacher, student: log-probabilities, (P, n). beta: the teacher's share of the mixture, between 0 and 1.
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
    """The log-probabilities of some tokens, and that of all others together: (P, k + 1).

    The others are summed, for 1 less the sum of the tokens kept would be all rounding where they are few.

    logs: (P, V). tokens: int64 (P, k).
    """
    rest = logs.scatter(1, tokens, _LEFT_OUT).logsumexp(1, keepdim=True).clamp(min=_LEAST_LOG)
    return torch.cat([logs.gather(1, tokens), rest], dim=1)


def mixed(logits: Tensor, labels: Tensor, soft: Tensor | None, hard: float) -> Tensor:
    """(1 - hard) · soft + hard · cross-entropy at each position, float32 (P,).

    labels: int64 (P,). soft: None where `hard` is 1.
    """
    if soft is not None and hard == 0.0:
        return soft
    entropy = F.cross_entropy(logits.float(), labels, reduction="none")
    return entropy if soft is None else (1.0 - hard) * soft + hard * entropy


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) of log-probabilities."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
