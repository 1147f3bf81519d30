"""Teachers' answers: the log-probabilities that they give to the tokens of rows.

Teachers and texts stay the same through a whole search. So the answers are computed once, and kept on disk as the k
likeliest tokens of each position. All other tokens count together as one more, see `losses.kept`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from evomerge.errors import CandidateError
from evomerge.files import hashed_tensors
from evomerge.files.hashing import digest_of_json
from evomerge.operators.training import forward, losses
from evomerge.operators.training.corpus import Row, digest
from evomerge.operators.training.loop import Sample
from evomerge.operators.training.losses import Targets

_FORMAT = 1  # the version of the files; answers in files of another version are computed anew


class Answers(Protocol):
    """A teacher's answers to a domain's rows, live or kept."""

    def targets(self, samples: Sequence[Sample]) -> Targets:
        """The answers at the positions of the samples' learned tokens, sample by sample."""


@dataclass(frozen=True)
class Teacher:
    """A model that answers when it is asked, at a temperature. That is slow where the vocabulary is large."""

    model: Any
    temperature: float = 1.0

    @torch.no_grad()
    def logs(self, rows: Sequence[Row]) -> Tensor:
        """The log-probabilities of all tokens at the learned tokens' positions, row by row: float32 (P, V)."""
        return forward.logits(self.model, rows)[0].div_(self.temperature).log_softmax(-1)

    def targets(self, samples: Sequence[Sample]) -> Targets:
        """The log-probabilities of all tokens at the samples' learned positions."""
        return Targets(self.logs([sample.row for sample in samples]))


class Stored:
    """Answers that were computed before.

    Args:
        rows: the rows that are answered, in the order of the samples' numbers.
        tokens: the likeliest tokens at the P positions of all rows, row by row: int32 (P, k).
        logs: their log-probabilities and that of all others together: float16 or float32 (P, k + 1).
    """

    def __init__(self, rows: Sequence[Row], tokens: Tensor, logs: Tensor) -> None:
        self._starts = [0, *accumulate(row.learned for row in rows)]
        self._tokens, self._logs = tokens, logs

    def targets(self, samples: Sequence[Sample]) -> Targets:
        """The log-probabilities of the k likeliest tokens and of all others together, float32, on the CPU."""
        parts = [slice(*self._starts[sample.number : sample.number + 2]) for sample in samples]
        tokens = torch.cat([self._tokens[part] for part in parts]).long()
        return Targets(torch.cat([self._logs[part] for part in parts]).float(), tokens)


@dataclass(frozen=True)
class Setting:
    """What kept answers depend on besides the teacher and the rows.

    Attributes:
        k: how many tokens are kept at each position.
        temperature: the temperature of the answers.
        dtype: the dtype of the teacher's weights.
        batch_tokens: tokens that go through the teacher at once, padding included.
        device: the kind of device, such as "cpu".
    """

    k: int
    temperature: float
    dtype: str
    batch_tokens: int
    device: str


class Parents:
    """The models to learn from, opened when they are first needed.

    Args:
        parent, identity: see `operators.Context`.
        vocabulary: rows of the student's head.
        temperature: the temperature at which they answer.
    """

    def __init__(
        self, parent: Callable[[str], Any], identity: Mapping[str, str], vocabulary: int, temperature: float
    ) -> None:
        self._parent, self._identity, self._vocabulary = parent, identity, vocabulary
        self.temperature = temperature
        self._open: dict[str, Any] = {}

    def teacher(self, name: str) -> Teacher:
        """The model of that name as a teacher.

        Raises:
            CandidateError: it has another vocabulary than the student.
        """
        if name not in self._open:
            self._open[name] = model = self._parent(name)
            rows = model.get_output_embeddings().weight.shape[0]
            if rows != self._vocabulary:
                raise CandidateError(
                    f"{name} answers for {rows} tokens, but the merged model has {self._vocabulary}; learn "
                    "from experts of its vocabulary"
                )
        return Teacher(self._open[name], self.temperature)

    def release(self) -> None:
        """Lets the open models go."""
        self._open.clear()

    def sha256(self, name: str) -> str:
        """The sha256 of a model's weights.

        Raises:
            CandidateError: there is no such model.
        """
        if name not in self._identity:
            raise CandidateError(f"there is no model {name!r} here to learn from")
        return self._identity[name]


def stored(folder: Path, name: str, parents: Parents, rows: Sequence[Row], setting: Setting) -> Stored:
    """A teacher's answers to rows, from disk if they are there; else computed and put there.

    Raises:
        StudyError: the disk does not take them.
    """
    path = folder / f"answers-{key(parents.sha256(name), rows, **vars(setting))}.safetensors"
    kept = hashed_tensors.read(path)
    if kept is None:
        tokens, logs = _answer(parents.teacher(name), rows, setting)
        hashed_tensors.write(path, {"tokens": tokens, "logs": logs})
    else:
        tokens, logs = kept[0]["tokens"], kept[0]["logs"]
    return Stored(rows, tokens, logs)


def key(teacher: str, rows: Sequence[Row], **settings: Any) -> str:
    """The name of what a teacher makes of rows. The number of threads is in it, for it changes the last bits.

    Args:
        teacher: the sha256 of its weights.
        settings: all else that the answers depend on.
    """
    content = {
        "format": _FORMAT,
        "teachers": [teacher],
        "rows": digest(rows),
        "threads": torch.get_num_threads(),
        **settings,
    }
    return digest_of_json(content)[:32]


def _answer(teacher: Teacher, rows: Sequence[Row], setting: Setting) -> tuple[Tensor, Tensor]:
    """A teacher's answers to rows, as `Stored` takes them.

    Returns:
        The likeliest tokens, int32 (P, k), where k is at most the size of the vocabulary; and their
        log-probabilities, (P, k + 1), float32 for a float32 model, else float16.
    """
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    kind = torch.float32 if setting.dtype == "float32" else torch.float16
    for batch in forward.batches(rows, setting.batch_tokens):
        logs = teacher.logs([rows[number] for number in batch])
        best = logs.topk(min(setting.k, logs.shape[1]), dim=1).indices
        counts = [rows[number].learned for number in batch]
        tokens, values = best.int().cpu(), losses.kept(logs, best).to(kind).cpu()
        for number, *part in zip(batch, torch.split(tokens, counts), torch.split(values, counts), strict=True):
            parts[number] = (part[0], part[1])
    in_order = [parts[number] for number in range(len(rows))]
    return torch.cat([tokens for tokens, _ in in_order]), torch.cat([logs for _, logs in in_order])
