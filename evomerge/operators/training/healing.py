"""One training from beginning to end: the weights are opened, trained on lessons, measured, and handed back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import CandidateError
from evomerge.operators.training import weights
from evomerge.operators.training.lessons import Lessons
from evomerge.operators.training.loop import Course, Sample, Trained, mean_loss, train
from evomerge.operators.training.settings import Loss
from evomerge.operators.training.weights import Trainable

_PROBE = 8  # rows of each domain, on which the loss is taken before and after
_HALF_SCALE = 1024.0  # of the loss of float16 models, whose small gradients would vanish
_ADAM_BYTES = 16  # per trained element: float32 weight, gradient, and two moments


@dataclass(frozen=True)
class Healed:
    """What a training came to.

    Attributes:
        arrays: the trained tensors as they are kept; {} if no step was taken.
        course: steps, tokens, seconds and losses.
        before, after: the mean loss of the first rows of each domain.
        peak_bytes: memory that the optimizer took.
    """

    arrays: dict[str, Tensor]
    course: Trained
    before: float
    after: float
    peak_bytes: int

    def record(self) -> dict[str, Any]:
        """What the study notes of it, in JSON's types."""
        return {
            "steps": self.course.steps,
            "tokens": self.course.tokens,
            "training_seconds": self.course.seconds,
            "loss": [[step, loss] for step, loss in enumerate(self.course.curve, start=1)],
            "before": self.before,
            "after": self.after,
        }


def heal(
    model: Any,
    lessons: Lessons,
    loss: Loss,
    course: Course,
    trainable: Trainable,
    *,
    each: int,
    report: Callable[[int, Mapping[str, float]], None],
) -> Healed:
    """Trains a live model's weights on lessons. Afterwards the model is set as before.

    Adapters leave the model's own weights as they are. With method `full` these are trained in place.

    Args:
        each: samples of each domain in a step.
        report: is told of each step, see `loop.train`.

    Raises:
        CandidateError: a loss, a gradient or a trained weight is not finite.
        torch.OutOfMemoryError: the device's memory does not do.
    """
    if model.dtype == torch.float16:
        course = replace(course, scale=_HALF_SCALE)

    def per_token(samples: Sequence[Sample]) -> Tensor:
        return lessons.losses(model, loss, samples)

    with weights.opened(model, trainable) as parameters:
        probe = lessons.first(_PROBE)
        before = mean_loss(per_token, probe, course.batch_tokens)
        supply = lessons.supply(each, trainable.seed)
        outcome = train(list(parameters.values()), per_token, supply, course, report)
        after = mean_loss(per_token, probe, course.batch_tokens)
        if not all(bool(tensor.isfinite().all()) for tensor in parameters.values()) or not math.isfinite(after):
            raise CandidateError(f"training failed at step {outcome.steps}: its weights are not finite; lower lr")
        # Without a step, adapters of 0 would still make 0 of -0.
        arrays = weights.kept(parameters, trainable.method) if outcome.steps else {}
    return Healed(arrays, outcome, before, after, _ADAM_BYTES * sum(p.numel() for p in parameters.values()))
