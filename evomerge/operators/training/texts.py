"""Texts that models write: continuations of a corpus's rows, drawn token by token from their probabilities.

A teacher's own texts (sequence-level distillation, Kim and Rush 2016, arXiv 1606.07947) are written once and kept
on disk. A student's (on-policy, GKD, arXiv 2306.13649) are written anew as it learns. Speculative ones (SKD, Xu et
al. 2024, arXiv 2410.11325, algorithm 1) are the student's, but a token outside of the teacher's likeliest K is
drawn from the teacher instead.

Each row's chances are drawn from a key and its number alone.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import CandidateError
from evomerge.files import hashed_tensors
from evomerge.operators.training.corpus import Row, entropy
from evomerge.operators.training.teachers import Parents, key

_BEGINNING = 0.25  # of a row without a prompt


_LINES = 64  # rows written at once


class Writer:
    """Models that write together, by the mean of their probabilities; it has read `ids` so far."""

    def __init__(self, models: Sequence[Any]) -> None:
        self._models = list(models)
        self._past: list[Any] = [None] * len(self._models)

    @torch.no_grad()
    def read(self, ids: Tensor) -> Tensor:
        """Reads further tokens, int64 (b, n), and gives the next one's probabilities: float64 (b, V), on the CPU,
        where sums have an order.

        Raises:
            CandidateError: a model keeps nothing of what it has read.
        """
        total: Any = 0.0
        for number, model in enumerate(self._models):
            found = model(input_ids=ids.to(model.device), past_key_values=self._past[number], use_cache=True)
            self._past[number] = getattr(found, "past_key_values", None)
            if self._past[number] is None:
                raise CandidateError(
                    f"{type(model).__name__} keeps no keys and values to write with; use text: data"
                )
            total = total + found.logits[:, -1].float().softmax(-1).cpu().double()
        return torch.as_tensor(total / len(self._models))


def beginning(row: Row) -> tuple[int, ...]:
    """What of a row is continued: its prompt, or its first quarter."""
    return row.ids[: row.start if row.start > 1 else max(1, round(_BEGINNING * len(row.ids)))]


def write(
    writers: Sequence[Any],
    rows: Sequence[Row],
    end: int | None,
    *seed: Any,
    judges: Sequence[Any] = (),
    accepted: int = 25,
) -> list[Row]:
    """The rows' beginnings, continued to the end token or to the row's length; only the continuation is learned.

    Args:
        writers: models; what is drawn from is the mean of their probabilities.
        end: the end token, if there is one.
        seed: of the chances, with the row's number.
        judges: models that draw a token of their own where the writers' is not of their likeliest `accepted`.
    """
    found: dict[int, Row] = {}
    alike = defaultdict[int, list[int]](list)
    for number, row in enumerate(rows):
        alike[len(beginning(row))].append(number)
    with _evaluating(writers):
        for length in sorted(alike):
            for first in range(0, len(alike[length]), _LINES):
                numbers = alike[length][first : first + _LINES]
                lines = _continue(writers, judges, accepted, [rows[n] for n in numbers], end, numbers, seed)
                found |= {n: Row(ids, length) for n, ids in zip(numbers, lines, strict=True)}
    return [found[number] for number in range(len(rows))]


def stored(
    folder: Path, names: Sequence[str], parents: Parents, rows: Sequence[Row], end: int | None, dtype: str
) -> list[Row]:
    """Teachers' own continuations of rows, from disk if they are there; else written and put there.

    Their seed is their key, so that all candidates learn the same ones.

    Raises:
        StudyError: the disk does not take them.
    """
    name = key([parents.sha256(one) for one in names], rows, end=end, dtype=dtype, kind="texts")
    path = folder / f"texts-{name}.safetensors"
    found = hashed_tensors.read(path)
    if found is None:
        fresh = write(parents.teacher(names).models, rows, end, name)
        arrays = {
            "ids": torch.tensor([token for row in fresh for token in row.ids], dtype=torch.int32),
            "lengths": torch.tensor([len(row.ids) for row in fresh], dtype=torch.int32),
            "starts": torch.tensor([row.start for row in fresh], dtype=torch.int32),
        }
        hashed_tensors.write(path, arrays)
        return fresh
    ids = iter(found[0]["ids"].tolist())
    counts = zip(found[0]["lengths"].tolist(), found[0]["starts"].tolist(), strict=True)
    return [Row(tuple(itertools.islice(ids, length)), start) for length, start in counts]


def draw(probabilities: Tensor, chances: Tensor) -> Tensor:
    """A token of each line, int64 (b,): the first at which the running sum exceeds the chance.

    probabilities: float64 (b, V). chances: float64 (b,), in [0, 1).
    """
    sums = probabilities.cumsum(1)
    return torch.searchsorted(sums, (chances * sums[:, -1])[:, None], right=True)[:, 0].clamp(max=sums.shape[1] - 1)


def _continue(
    writers: Sequence[Any],
    judges: Sequence[Any],
    accepted: int,
    rows: Sequence[Row],
    end: int | None,
    numbers: Sequence[int],
    seed: Sequence[Any],
) -> list[tuple[int, ...]]:
    """The tokens of rows whose beginnings are of one length."""
    lengths = [len(row.ids) for row in rows]
    fed = torch.tensor([beginning(row) for row in rows])
    lines, steps = [fed], max(lengths) - fed.shape[1]
    chances = torch.from_numpy(
        np.stack([np.random.default_rng(entropy(*seed, number)).random((2, steps)) for number in numbers])
    )
    writer, judge = Writer(writers), Writer(judges)
    ended = torch.zeros(len(rows), dtype=torch.bool)
    for step in range(steps):
        fed_next = draw(writer.read(fed), chances[:, 0, step])
        if judges:
            own = judge.read(fed)
            least = own.topk(min(accepted, own.shape[1]), dim=1).values[:, -1]
            outside = own.gather(1, fed_next[:, None])[:, 0] < least
            fed_next = torch.where(outside, draw(own, chances[:, 1, step]), fed_next)
        fed = fed_next[:, None]
        lines.append(fed)
        if end is not None:
            ended |= fed_next == end
            if bool(ended.all()):
                break
    whole = torch.cat(lines, dim=1).tolist()
    begun = len(beginning(rows[0]))
    return [_ended(line[:length], begun, end) for line, length in zip(whole, lengths, strict=True)]


def _ended(line: list[int], begun: int, end: int | None) -> tuple[int, ...]:
    """A line up to its first end token after its beginning."""
    if end is not None and end in line[begun:]:
        line = line[: line.index(end, begun) + 1]
    return tuple(line)


@contextmanager
def _evaluating(models: Sequence[Any]) -> Iterator[None]:
    """No layer of the models is in training mode meanwhile: one that recomputes its activations keeps no cache."""
    busy = [module for model in models for module in model.modules() if module.training]
    for module in busy:
        module.training = False
    try:
        yield
    finally:
        for module in busy:
            module.training = True
