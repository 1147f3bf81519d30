"""What a training learns: each domain's rows of tokens, and its teacher's answers to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from evomerge.errors import CandidateError, ConfigError
from evomerge.files import hashing
from evomerge.models import rope
from evomerge.operators.training import corpus, forward, losses, teachers, texts
from evomerge.operators.training.corpus import Row
from evomerge.operators.training.loop import Sample, Supply
from evomerge.operators.training.settings import Loss
from evomerge.operators.training.teachers import Answers, Parents
from evomerge.recipes.recipe import Corpus


def row_length(model: Any, most: int) -> int:
    """The tokens of a row where no option says it: `most`, or what the model was made for if that is less.

    A model whose context was extended counts as it was before, for its teachers read no further.
    """
    config = model.config.get_text_config()
    try:
        made_for = rope.original_length(config)
    except CandidateError:
        made_for = getattr(config, "max_position_embeddings", most)
    return min(most, made_for)


def read(
    files: Mapping[str, Corpus], tokenizer: Any, length: int, most: int, vocabulary: int
) -> tuple[dict[str, str], dict[str, list[Row]]]:
    """The sha256 of each domain's file, and its rows.

    Args:
        files: domain -> its file of texts.
        length: tokens of the longest row.
        most: rows of a domain at most.
        vocabulary: how many tokens the model has.

    Raises:
        CandidateError: a file is not the one that is meant, or cannot be read, or holds a token that the model has
            not.
    """
    hashes, rows = {}, {}
    for domain, file in sorted(files.items()):
        try:
            hashes[domain] = hashing.file_sha256(Path(file.path))
            if file.sha256 not in (None, hashes[domain]):
                raise CandidateError(
                    f"data.{domain}: {file.path} has the sha256 {hashes[domain]}, not {file.sha256}; it was changed"
                )
            rows[domain] = corpus.rows(Path(file.path), tokenizer, length, most)
            corpus.check_tokens(Path(file.path), rows[domain], tokenizer, vocabulary)
        except ConfigError as error:
            raise CandidateError(f"data.{domain}: {error}") from error
    return hashes, rows


@dataclass(frozen=True)
class Teaching:
    """What teachers are asked for.

    Attributes:
        teachers: domain -> the name of the model that teaches it.
        writes: whether teachers write the texts that are learned, as continuations of the rows.
        targets: how many of the likeliest tokens of each answer are kept on disk; "live" asks the teacher at each
            step; None learns no answers.
        batch_tokens: tokens that go through a teacher at once, padding included.
    """

    teachers: Mapping[str, str]
    writes: bool
    targets: int | Literal["live"] | None
    batch_tokens: int


@dataclass(frozen=True)
class Lessons:
    """What is learned.

    Attributes:
        rows: domain -> its rows.
        answers: domain -> its teacher's answers to these rows; {} where no teacher answers.
    """

    rows: Mapping[str, Sequence[Row]]
    answers: Mapping[str, Answers]

    def losses(self, model: Any, loss: Loss, samples: Sequence[Sample]) -> Tensor:
        """The loss of each learned token of one domain's samples, float32 (P,)."""
        logits, labels = forward.logits(model, [sample.row for sample in samples])
        soft = None
        if self.answers:
            targets = self.answers[samples[0].domain].targets(samples)
            soft = losses.distillation(logits, targets, loss.kind, temperature=loss.temperature, beta=loss.beta)
        return losses.mixed(logits, labels, soft, loss.hard)

    def first(self, count: int) -> dict[str, list[Sample]]:
        """The first samples of each domain."""
        return {domain: self._samples(domain, range(min(count, len(rows)))) for domain, rows in self.rows.items()}

    def supply(self, each: int, seed: int) -> Supply:
        """Gives each step `each` samples of every domain, all rows in turn, in an order drawn from the seed."""
        orders = {domain: corpus.endless(len(rows), seed, "order", domain) for domain, rows in self.rows.items()}
        return lambda step: {domain: self._samples(domain, _take(orders[domain], each)) for domain in self.rows}

    def _samples(self, domain: str, numbers: Sequence[int]) -> list[Sample]:
        return [Sample(self.rows[domain][number], domain, number) for number in numbers]


def _take(numbers: Iterator[int], count: int) -> list[int]:
    return list(itertools.islice(numbers, count))


def taught(
    model: Any,
    rows: Mapping[str, Sequence[Row]],
    teaching: Teaching,
    parents: Parents,
    *,
    folder: Path,
    end: int | None,
) -> Lessons:
    """The lessons that the teachers give on rows: they write, answer, or stay open to answer.

    One teacher is open at a time, unless they answer live.

    Args:
        model: the student.
        rows: domain -> its rows.
        folder: where texts and answers are kept.
        end: the end token; None where the tokenizer has none.
    """
    rows, answers = dict(rows), dict[str, Answers]()
    dtype = str(model.dtype).removeprefix("torch.")
    for name in sorted(set(teaching.teachers.values())):
        for domain in sorted(domain for domain, one in teaching.teachers.items() if one == name):
            if teaching.writes:
                rows[domain] = texts.stored(folder, name, parents, rows[domain], end, dtype)
            if teaching.targets == "live":
                answers[domain] = parents.teacher(name)
            elif teaching.targets is not None:
                setting = teachers.Setting(
                    k=teaching.targets,
                    temperature=parents.temperature,
                    dtype=dtype,
                    batch_tokens=teaching.batch_tokens,
                    device=model.device.type,
                )
                answers[domain] = teachers.stored(folder, name, parents, rows[domain], setting)
        if teaching.targets != "live":
            parents.release()
    return Lessons(rows, answers)
