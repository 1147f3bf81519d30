"""Heals a merged model: each domain's texts are learned from the expert that knows it.

Merging loses some of what the experts could. A few dozen steps towards the experts' own answers bring much of it
back, each domain's from its own teacher (ProDistill, Xu et al. 2025, arXiv 2502.12706; self-data distillation,
Thangarasa et al. 2024, arXiv 2410.09982). Which teacher answers for what counts for far more than the divergence.

    data: {maths: maths.jsonl, code: code.txt}
    teachers: {maths: mathstral, code: coder}

What is kept is low-rank adapters (`method: lora`), or all weights (`full`).
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import transformers
from pydantic import Field, field_validator
from torch import Tensor, nn

from evomerge.errors import CandidateError, ConfigError
from evomerge.files import hashed_tensors, hashing
from evomerge.files.schema import Strict
from evomerge.models import rope
from evomerge.operators import Applied, Context, Cost
from evomerge.operators.training import corpus, forward, lora, losses, texts
from evomerge.operators.training import teachers as teaching
from evomerge.operators.training.corpus import Row
from evomerge.operators.training.loop import Course, Sample, Supply, mean_loss, train
from evomerge.recipes.recipe import Corpus, CorpusField

TRAINING = True

_RATES = {"lora": 1e-3, "full": 2e-5}


_LENGTH = 512  # of rows, if nothing is said


_PROBE = 8  # rows of each domain, on which the loss is taken before and after


_RECORD = "record"  # the metadata's key in the file that is kept


_HALF_SCALE = 1024.0


class Loss(Strict):
    """What is learned of each token.

    Attributes:
        kind: the divergence from the teacher's answers.
        temperature: of both sides, when they are compared.
        hard: the share of the cross-entropy of the texts' own tokens in the loss; with 1.0 no teacher answers.
        beta: the teacher's share of the mixture in `jsd`.
    """

    kind: losses.Kind = "forward_kl"
    temperature: float = Field(default=1.0, gt=0.0)
    hard: float = Field(default=0.0, ge=0.0, le=1.0)
    beta: float = Field(default=0.5, gt=0.0, lt=1.0)


class Options(Strict):
    """What is learned, from whom, and how far.

    Attributes:
        data: domain -> the file of its texts.
        teachers: domain -> the model that answers for it: an expert's name, or `base`.
        loss: what is learned of each token.
        targets: how many of the likeliest tokens of a teacher's answers are kept on disk; or `live`, to ask the
            teacher at each step.
        text: which texts are learned: the data, or what the teacher makes of its beginnings.
        method: what is trained: low-rank adapters (`lora`), or all weights (`full`).
        rank: the rank of the adapters.
        lr: the highest learning rate; by default 1e-3 for `lora`, 2e-5 for `full`.
        warmup: the share of the steps in which the learning rate rises to its height.
        decay: the curve by which it falls to 0 after that.
        clip: the largest norm of the gradient; a longer one is shortened.
        length: the most tokens in a row; by default 512, or what the model was made for if that is less.
        rows: the most rows of a domain; where its file has more, they are taken evenly spread.
        batch: rows of a step, the same number of each domain.
        batch_tokens: the most tokens that go through the model at once, padding included.
        checkpointing: whether activations within layers are computed again on the way back, to save memory.
        steps, tokens, seconds: training ends with the step in which the first of these is reached. Training that
            `seconds` ends cannot be repeated to the same bits.
    """

    data: dict[str, CorpusField] = Field(min_length=1)
    teachers: dict[str, str] = Field(default_factory=dict)
    loss: Loss = Loss()
    targets: Annotated[int, Field(ge=1)] | Literal["live"] = 64
    text: Literal["data", "teacher"] = "data"
    method: Literal["lora", "full"] = "lora"
    rank: int = Field(default=8, ge=1)
    lr: float | None = Field(default=None, gt=0.0)
    warmup: float = Field(default=0.1, ge=0.0, le=1.0)
    decay: Literal["linear", "cosine"] = "cosine"
    clip: float = Field(default=1.0, gt=0.0)
    length: int | None = Field(default=None, ge=2)
    rows: int = Field(default=1024, ge=1)
    batch: int = Field(default=16, ge=1)
    batch_tokens: int = Field(default=2048, ge=1)
    checkpointing: bool = False
    steps: int = Field(default=40, ge=0)
    tokens: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0.0)

    @field_validator("teachers", mode="before")
    @classmethod
    def _one_a_domain(cls, teachers: Any) -> Any:
        """Refuses several teachers for a domain: measured, their mean heals worse than no training at all."""
        domains = teachers.items() if isinstance(teachers, Mapping) else ()
        several = [str(domain) for domain, names in domains if isinstance(names, list | tuple)]
        if several:
            raise ValueError(f"one model teaches a domain; name one for {', '.join(several)}, not a list")
        return teachers


def check(options: Options, config: Any) -> list[str]:
    """The faults that can be told without the experts."""
    faults = []
    for domain, file in options.data.items():
        if wrong := corpus.fault(Path(file.path)):
            faults.append(f"data.{domain}: {wrong}")
        if domain not in options.teachers and _taught(options):
            faults.append(f"teachers: has none for {domain}; name an expert, or base")
    faults += [
        f"teachers.{domain}: there is no such domain in data"
        for domain in options.teachers
        if domain not in options.data
    ]
    if options.batch < len(options.data):
        faults.append(f"batch: has a row for {options.batch} of {len(options.data)} domains; raise it")
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and options.length is not None and options.length > longest:
        faults.append(f"length: is more than the {longest} tokens that the model is meant for")
    return faults


def reach(options: Options, config: Any) -> int | None:
    """As it was."""
    return None


def estimate(options: Options, parameters: int) -> Cost:
    """From the usual shape of a transformer: layers 128 times as wide as they are many, seven matrices in each."""
    steps = options.steps
    tokens = steps * _each(options) * len(options.data) * (options.length or _LENGTH)
    if options.tokens is not None:
        tokens = min(tokens, options.tokens)
    width = (128 * parameters / 12) ** (1 / 3)
    trained = parameters if options.method == "full" else round(19 * width**2 / 128 * options.rank)
    answers = 0
    if _answered(options) and isinstance(options.targets, int) and not _live(options):
        answers = 6 * options.targets * options.rows * (options.length or _LENGTH) * len(options.data)
    return Cost(
        seconds=options.seconds or 0.0,
        steps=steps,
        tokens=tokens,
        peak_bytes=16 * trained if steps else 0,
        disk_bytes=(4 * trained + answers) if steps else 0,
    )


def teachers(options: Options) -> set[str]:
    """The experts, or `base`, that are learned from."""
    return set(_teacher_of(options).values())


def corpora(options: Options) -> dict[str, Corpus]:
    """Domain -> the file that is trained on."""
    return dict(options.data)


def apply(model: nn.Module, options: Options, context: Context) -> Applied:
    """Trains unless it was done before; then puts into the model what the file says.

    Raises:
        CandidateError: a file of texts is not the one that is meant or cannot be read, a loss is not finite, or
            what was kept is damaged or of another model.
        StudyError: the disk does not take a file.
        torch.OutOfMemoryError: the device's memory does not do.
    """
    if not context.kept.exists():
        _learn(model, options, context)
    found = hashed_tensors.read(context.kept)
    if found is None or _RECORD not in found[1]:
        raise CandidateError(f"{context.kept} is damaged; remove it to train again")
    arrays, record = found[0], json.loads(found[1][_RECORD])
    if record["method"] == "lora":
        lora.fold(model, arrays)
    else:
        _replace(model, arrays)
    return Applied(lambda: None, {**record, "sha256": found[1][hashed_tensors.HASH]}, Cost(**record["cost"]))


@dataclass(frozen=True)
class _Lessons:
    """What is learned. rows: by domain. answers: by domain; {} where no teacher answers."""

    rows: Mapping[str, Sequence[Row]]
    answers: Mapping[str, teaching.Answers]


def _learn(model: Any, options: Options, context: Context) -> None:
    """Trains, and leaves the file."""
    begun = time.monotonic()
    record: dict[str, Any] = {"method": options.method, "steps": 0, "tokens": 0}
    arrays: dict[str, Tensor] = {}
    trained_bytes = 0
    if options.steps:
        parents = teaching.Parents(
            context.parent,
            context.identity,
            model.get_output_embeddings().weight.shape[0],
            options.loss.temperature,
        )
        hashes, rows = _read(options, context, _length(options, model))
        lessons = _prepare(model, options, context, parents, rows)
        arrays, outcome, trained_bytes = _train(model, options, context, lessons)
        record |= outcome
        record |= {
            "data": hashes,
            "teachers": {name: parents.sha256(name) for name in sorted(teachers(options))},
        }
    seconds = time.monotonic() - begun
    disk = sum(tensor.numel() * tensor.element_size() for tensor in arrays.values())
    cost = Cost(seconds, record["steps"], record["tokens"], trained_bytes, disk)
    record |= {
        "seconds": seconds,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cost": vars(cost),
    }
    hashed_tensors.write(context.kept, arrays, {_RECORD: json.dumps(record)})


def _length(options: Options, model: Any) -> int:
    """Tokens of a row: by default no more than the model was made for, and with it its teachers."""
    if options.length is not None:
        return options.length
    config = model.config.get_text_config()
    try:
        made_for = rope.original_length(config)
    except CandidateError:
        made_for = getattr(config, "max_position_embeddings", _LENGTH)
    return min(_LENGTH, made_for)


def _read(options: Options, context: Context, length: int) -> tuple[dict[str, str], dict[str, list[Row]]]:
    """Domain -> its file's sha256, and -> its rows."""
    hashes, rows = {}, {}
    for domain, file in sorted(options.data.items()):
        try:
            hashes[domain] = hashing.file_sha256(Path(file.path))
            if file.sha256 not in (None, hashes[domain]):
                raise CandidateError(
                    f"data.{domain}: {file.path} has the sha256 {hashes[domain]}, not {file.sha256}; it was changed"
                )
            rows[domain] = corpus.rows(Path(file.path), context.tokenizer, length, options.rows)
        except ConfigError as error:
            raise CandidateError(f"data.{domain}: {error}") from error
    return hashes, rows


def _prepare(
    model: Any,
    options: Options,
    context: Context,
    parents: teaching.Parents,
    rows: Mapping[str, Sequence[Row]],
) -> _Lessons:
    """Has the teachers write and answer. One of them is open at a time, unless they must stay."""
    rows, answers = dict(rows), dict[str, teaching.Answers]()
    dtype = str(model.dtype).removeprefix("torch.")
    named = _teacher_of(options)
    for name in sorted(set(named.values())):
        for domain in sorted(domain for domain in named if named[domain] == name):
            if options.text == "teacher":
                end = context.tokenizer.eos_token_id
                rows[domain] = texts.stored(context.folder, name, parents, rows[domain], end, dtype)
            if _live(options):
                answers[domain] = parents.teacher(name)
            elif _answered(options):
                assert isinstance(options.targets, int)
                setting = teaching.Setting(
                    options.targets, options.loss.temperature, dtype, options.batch_tokens, model.device.type
                )
                answers[domain] = teaching.stored(context.folder, name, parents, rows[domain], setting)
        if not _live(options):
            parents.release()
    return _Lessons(rows, answers)


def _train(
    model: Any, options: Options, context: Context, lessons: _Lessons
) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """What is to be kept, what is known of it, and the bytes that the optimizer took."""
    with ExitStack() as undo:
        if options.method == "lora":
            factors = lora.factors(model, options.rank, context.seed)
            leaves = {name: nn.Parameter(tensor) for name, tensor in factors.items()}
            undo.enter_context(
                forward.training(model, (), _length(options, model), checkpointing=options.checkpointing)
            )
            undo.enter_context(lora.hooked(model, leaves))
        else:
            leaves = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
            undo.enter_context(
                forward.training(
                    model, list(leaves.values()), _length(options, model), checkpointing=options.checkpointing
                )
            )

        def per_token(samples: Sequence[Sample]) -> Tensor:
            return _losses(model, options.loss, lessons, samples)

        probe = {domain: _samples(domain, rows, range(_PROBE)) for domain, rows in lessons.rows.items()}
        before = mean_loss(per_token, probe, options.batch_tokens)
        supply = _supply(options, context, lessons)
        outcome = train(list(leaves.values()), per_token, supply, _course(model, options), context.report)
        after = mean_loss(per_token, probe, options.batch_tokens)
        if not all(bool(tensor.isfinite().all()) for tensor in leaves.values()) or not math.isfinite(after):
            raise CandidateError(f"training failed at step {outcome.steps}: its weights are not finite; lower lr")
        arrays = lora.scaled(leaves) if options.method == "lora" else dict[str, Tensor](leaves)
        if not outcome.steps:
            arrays = {}  # adapters of 0 would still make 0 of -0
    record: dict[str, Any] = {
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "training_seconds": outcome.seconds,
        "loss": [[step, loss] for step, loss in enumerate(outcome.curve, start=1)],
        "before": before,
        "after": after,
    }
    return arrays, record, 16 * sum(tensor.numel() for tensor in leaves.values())


def _losses(model: Any, loss: Loss, lessons: _Lessons, samples: Sequence[Sample]) -> Tensor:
    """The loss of each learned token of one domain's samples."""
    logits, labels = forward.logits(model, [sample.row for sample in samples])
    soft = None
    if lessons.answers:
        targets = lessons.answers[samples[0].domain].targets(samples)
        soft = losses.distillation(logits, targets, loss.kind, temperature=loss.temperature, beta=loss.beta)
    return losses.mixed(logits, labels, soft, loss.hard)


def _supply(options: Options, context: Context, lessons: _Lessons) -> Supply:
    """The samples of each step."""
    orders = {
        domain: corpus.endless(len(rows), context.seed, "order", domain) for domain, rows in lessons.rows.items()
    }
    each = _each(options)
    return lambda step: {
        domain: _samples(domain, rows, _take(orders[domain], each)) for domain, rows in lessons.rows.items()
    }


def _samples(domain: str, rows: Sequence[Row], numbers: Sequence[int]) -> list[Sample]:
    return [Sample(rows[number], domain, number) for number in numbers if number < len(rows)]


def _take(numbers: Iterator[int], count: int) -> list[int]:
    return list(itertools.islice(numbers, count))


def _course(model: Any, options: Options) -> Course:
    return Course(
        steps=options.steps,
        lr=options.lr or _RATES[options.method],
        tokens=options.tokens,
        seconds=options.seconds,
        warmup=options.warmup,
        decay=options.decay,
        clip=options.clip,
        batch_tokens=options.batch_tokens,
        scale=_HALF_SCALE if model.dtype == torch.float16 else 1.0,
    )


@torch.no_grad()
def _replace(model: nn.Module, arrays: Mapping[str, Tensor]) -> None:
    """Puts whole tensors in the place of the model's."""
    parameters = dict(model.named_parameters())
    for name, tensor in arrays.items():
        here = parameters.get(name)
        if here is None or here.shape != tensor.shape or here.dtype != tensor.dtype:
            raise CandidateError(f"what was kept of the training is of another model: {name} does not fit")
        here.copy_(tensor)


def _each(options: Options) -> int:
    """Rows of each domain in a step."""
    return max(1, options.batch // len(options.data))


def _answered(options: Options) -> bool:
    """Whether teachers' answers are learned."""
    return options.loss.hard < 1.0


def _taught(options: Options) -> bool:
    """Whether any teacher is needed."""
    return _answered(options) or options.text == "teacher"


def _live(options: Options) -> bool:
    """Whether teachers stay open while the student learns."""
    return options.targets == "live" and _answered(options)


def _teacher_of(options: Options) -> dict[str, str]:
    """Domain -> the model that teaches it; {} where no teacher is needed."""
    if not _taught(options):
        return {}
    return {domain: name for domain, name in options.teachers.items() if domain in options.data}
