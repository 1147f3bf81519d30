"""The loop of a training: AdamW on some parameters of a live model, within budgets.

AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) runs without weight decay, for healing is to stay near the
merge. Parameters of 16 bits are trained by way of a float32 copy, which takes their gradients as they come and is
rounded into them after each step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import CandidateError
from evomerge.operators.training.corpus import Row
from evomerge.operators.training.forward import batches
from evomerge.operators.training.settings import Decay


@dataclass(frozen=True)
class Sample:
    """A row to learn.

    Attributes:
        domain: the domain that it is from, whose teacher answers for it.
        number: its place in the domain's rows.
    """

    row: Row
    domain: str
    number: int


@dataclass(frozen=True)
class Course:
    """How far and how fast a training goes.

    Attributes:
        steps, tokens, seconds: training ends with the step in which the first of them is reached; None sets no end.
        lr: the highest learning rate. It is reached after `warmup`, a share of the steps, in which the rate rises
            linearly. The rate then falls to 0 at the end of the steps or tokens, whichever is nearer. Seconds have
            no part in it, for they differ between runs.
        decay: the curve by which the rate falls.
        clip: the gradient's largest norm.
        batch_tokens: tokens that go through the model at once, padding included.
        scale: the loss is multiplied by it on the gradients' way back. Gradients in float16 vanish below 6e-8.
    """

    steps: int
    lr: float
    tokens: int | None = None
    seconds: float | None = None
    warmup: float = 0.1
    decay: Decay = "cosine"
    clip: float = 1.0
    batch_tokens: int = 2048
    scale: float = 1.0


@dataclass(frozen=True)
class Trained:
    """How far a training came.

    Attributes:
        curve: the mean loss of each step.
    """

    steps: int
    tokens: int
    seconds: float
    curve: tuple[float, ...]


# Samples of one domain -> the loss of each of their learned tokens, float32 (P,).
Losses = Callable[[Sequence[Sample]], Tensor]

# A step's number -> its samples, by domain; the domains count alike, however long their rows are.
Supply = Callable[[int], Mapping[str, Sequence[Sample]]]


def train(
    parameters: Sequence[nn.Parameter],
    losses: Losses,
    supply: Supply,
    course: Course,
    report: Callable[[int, Mapping[str, float]], None] = lambda step, measured: None,
) -> Trained:
    """Trains parameters in place.

    Args:
        parameters: they have gradients enabled; float32, or 16 bits.
        report: is told of each step's loss, learning rate and gradient norm.

    Raises:
        CandidateError: a loss or a gradient is not finite.
        torch.OutOfMemoryError: the device's memory does not do.
    """
    begun, tokens, curve = time.monotonic(), 0, list[float]()
    with _masters(parameters) as (masters, publish):
        optimizer = torch.optim.AdamW(masters, lr=course.lr, weight_decay=0.0)
        for step in range(course.steps):
            if not _within(course, tokens, time.monotonic() - begun):
                break
            samples = supply(step)
            rate = course.lr * height(course, step, tokens)
            loss = _backward(losses, samples, course)
            if not math.isfinite(loss):
                raise CandidateError(f"training failed at step {step + 1}: its loss is {loss}; lower lr")
            norm = _clip(masters, course)
            if not math.isfinite(norm):
                raise CandidateError(f"training failed at step {step + 1}: its gradient is {norm}; lower lr")
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            publish()
            tokens += sum(len(sample.row.ids) for group in samples.values() for sample in group)
            curve.append(loss)
            report(step + 1, {"loss": loss, "lr": rate, "norm": norm})
    return Trained(len(curve), tokens, time.monotonic() - begun, tuple(curve))


def mean_loss(losses: Losses, samples: Mapping[str, Sequence[Sample]], batch_tokens: int) -> float:
    """The mean of the domains' mean losses, without gradients."""
    with torch.no_grad():
        return sum(float(loss) for loss in _parts(losses, samples, batch_tokens))


def height(course: Course, step: int, tokens: int) -> float:
    """The learning rate of a step as a share of the highest one.

    Args:
        step: the number of steps done.
        tokens: the number of tokens trained on.
    """
    done = max(step / course.steps, tokens / course.tokens if course.tokens else 0.0)
    rise = min(1.0, (step + 1) / max(1, round(course.warmup * course.steps)))
    return rise * ((1.0 - done) if course.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done)))


def _within(course: Course, tokens: int, seconds: float) -> bool:
    """Whether tokens and seconds leave room for another step."""
    return (course.tokens is None or tokens < course.tokens) and (
        course.seconds is None or seconds < course.seconds
    )


def _backward(losses: Losses, samples: Mapping[str, Sequence[Sample]], course: Course) -> float:
    """Adds the gradients of a step's loss, multiplied by the course's scale, and returns the loss."""
    total = 0.0
    for loss in _parts(losses, samples, course.batch_tokens):
        (course.scale * loss).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _parts(losses: Losses, samples: Mapping[str, Sequence[Sample]], batch_tokens: int) -> Iterator[Tensor]:
    """The terms of the step's loss: of each domain, one for each batch of its rows."""
    for group in samples.values():
        weight = 1.0 / (len(samples) * sum(sample.row.learned for sample in group))
        for batch in batches([sample.row for sample in group], batch_tokens):
            yield weight * losses([group[number] for number in batch]).sum()


def _clip(masters: Sequence[Tensor], course: Course) -> float:
    """Undoes the loss's scale, shortens the gradient to `clip`, and returns its norm before that."""
    gradients = [master.grad for master in masters if master.grad is not None]
    for gradient in gradients if course.scale != 1.0 else ():
        gradient.div_(course.scale)
    return float(nn.utils.clip_grad_norm_(masters, course.clip))


@contextmanager
def _masters(parameters: Sequence[nn.Parameter]) -> Iterator[tuple[list[nn.Parameter], Callable[[], None]]]:
    """The float32 parameters that the optimizer is given, and a function that puts them into the trained ones.

    A float32 parameter is its own. Each of the others has a copy, which a hook gives the gradients of the original.
    """
    masters, pairs = list[nn.Parameter](), list[tuple[nn.Parameter, nn.Parameter]]()
    with ExitStack() as undo:
        for parameter in parameters:
            if parameter.dtype == torch.float32:
                masters.append(parameter)
                continue
            master = nn.Parameter(parameter.detach().float())
            masters.append(master)
            pairs.append((parameter, master))
            hooks: Any = parameter
            undo.callback(hooks.register_post_accumulate_grad_hook(_taker(master)).remove)

        @torch.no_grad()
        def publish() -> None:
            for parameter, master in pairs:
                parameter.copy_(master)

        yield masters, publish


def _taker(master: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that moves a parameter's gradient into its float32 copy, adding it up there."""

    def take(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)

    return take
