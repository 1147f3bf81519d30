"""Texts that teachers write: continuations of a corpus's rows, drawn token by token from their probabilities.

This is sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947). A teacher's texts are written once and
kept on disk.

Each row has random numbers of its own, drawn from a key and the row's number alone.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import CandidateError
from evomerge.files import hashed_tensors
from evomerge.operators.training.corpus import Row, entropy
from evomerge.operators.training.teachers import Parents, key

_BEGINNING = 0.25  # the share of a row without a prompt that is continued
_LINES = 64  # rows written at once


class Writer:
    """A model that reads a batch of texts step by step, and remembers what it has read."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._past: Any = None

    @torch.no_grad()
    def read(self, ids: Tensor) -> Tensor:
        """Reads further tokens and returns the next one's probabilities.

        Args:
            ids: int64 (b, n).

        Returns:
            float64 (b, V), on the CPU, where sums have an order.

        Raises:
            CandidateError: the model keeps nothing of what it has read.
        """
        output = self._model(input_ids=ids.to(self._model.device), past_key_values=self._past, use_cache=True)
        self._past = getattr(output, "past_key_values", None)
        if self._past is None:
            raise CandidateError(
                f"{type(self._model).__name__} keeps no keys and values to write with; use text: data"
            )
        return torch.as_tensor(output.logits[:, -1].float().softmax(-1).cpu().double())


def beginning(row: Row) -> tuple[int, ...]:
    """The tokens of a row that are continued: its prompt, or its first quarter."""
    return row.ids[: row.start if row.start > 1 else max(1, round(_BEGINNING * len(row.ids)))]


def write(model: Any, rows: Sequence[Row], end: int | None, *seed: Any) -> list[Row]:
    """The rows' beginnings, continued to the end token or to the row's length; only the continuation is learned.

    Args:
        model: a transformers model in evaluation mode.
        end: the end token; None where the tokenizer has none.
        seed: the key of the random numbers, together with the row's number.
    """
    written: dict[int, Row] = {}
    by_length = defaultdict[int, list[int]](list)
    for number, row in enumerate(rows):
        by_length[len(beginning(row))].append(number)
    for length in sorted(by_length):
        for first in range(0, len(by_length[length]), _LINES):
            numbers = by_length[length][first : first + _LINES]
            lines = _continue(model, [rows[number] for number in numbers], end, numbers, seed)
            written |= {number: Row(ids, length) for number, ids in zip(numbers, lines, strict=True)}
    return [written[number] for number in range(len(rows))]


def stored(
    folder: Path, name: str, parents: Parents, rows: Sequence[Row], end: int | None, dtype: str
) -> list[Row]:
    """A teacher's own continuations of rows, from disk if they are there; else written and put there.

    Their seed is their key, so that all candidates learn the same ones.

    Args:
        name: the teacher's.
        end: the end token; None where the tokenizer has none.
        dtype: of the teacher's weights.

    Raises:
        StudyError: the disk does not take them.
    """
    seed = key(parents.sha256(name), rows, end=end, dtype=dtype, kind="texts")
    path = folder / f"texts-{seed}.safetensors"
    kept = hashed_tensors.read(path)
    if kept is None:
        written = write(parents.teacher(name).model, rows, end, seed)
        arrays = {
            "ids": torch.tensor([token for row in written for token in row.ids], dtype=torch.int32),
            "lengths": torch.tensor([len(row.ids) for row in written], dtype=torch.int32),
            "starts": torch.tensor([row.start for row in written], dtype=torch.int32),
        }
        hashed_tensors.write(path, arrays)
        return written
    ids = iter(kept[0]["ids"].tolist())
    shapes = zip(kept[0]["lengths"].tolist(), kept[0]["starts"].tolist(), strict=True)
    return [Row(tuple(itertools.islice(ids, length)), start) for length, start in shapes]


def draw(probabilities: Tensor, chances: Tensor) -> Tensor:
    """Draws a token of each line, int64 (b,): the first at which the running sum exceeds the chance.

    Args:
        probabilities: float64 (b, V).
        chances: float64 (b,), in [0, 1).
    """
    sums = probabilities.cumsum(1)
    return torch.searchsorted(sums, (chances * sums[:, -1])[:, None], right=True)[:, 0].clamp(max=sums.shape[1] - 1)


def _continue(
    model: Any, rows: Sequence[Row], end: int | None, numbers: Sequence[int], seed: Sequence[Any]
) -> list[tuple[int, ...]]:
    """The tokens of rows whose beginnings are equally long, each with its continuation."""
    lengths = [len(row.ids) for row in rows]
    fed = torch.tensor([beginning(row) for row in rows])
    begun, lines = fed.shape[1], [fed]
    steps = max(lengths) - begun
    chances = torch.from_numpy(
        np.stack([np.random.default_rng(entropy(*seed, number)).random(steps) for number in numbers])
    )
    writer = Writer(model)
    ended = torch.zeros(len(rows), dtype=torch.bool)
    for step in range(steps):
        fed = draw(writer.read(fed), chances[:, step])[:, None]
        lines.append(fed)
        if end is not None:
            ended |= fed[:, 0] == end
            if bool(ended.all()):
                break
    whole = torch.cat(lines, dim=1).tolist()
    return [_until_end(line[:length], begun, end) for line, length in zip(whole, lengths, strict=True)]


def _until_end(line: list[int], begun: int, end: int | None) -> tuple[int, ...]:
    """A line up to the first end token after its first `begun` tokens."""
    if end is not None and end in line[begun:]:
        line = line[: line.index(end, begun) + 1]
    return tuple(line)
