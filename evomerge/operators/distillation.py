"""Heals a merged model: each domain's texts are learned from the expert that knows it.

Merging loses some of what the experts could. A few dozen steps towards the experts' own answers bring much of it
back, each domain's from its own teacher (ProDistill, Xu et al. 2025, arXiv 2502.12706; self-data distillation,
Thangarasa et al. 2024, arXiv 2410.09982). Which teacher answers for which domain counts for far more than the
divergence.

    data: {maths: maths.jsonl, code: code.txt}
    teachers: {maths: mathstral, code: coder}

The file that it leaves holds low-rank adapters (`method: lora`), or all weights (`full`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from evomerge.errors import CandidateError
from evomerge.files.schema import Strict
from evomerge.operators import Applied, Context, Cost
from evomerge.operators.training import corpus
from evomerge.operators.training.settings import Decay, Loss, Weights
from evomerge.recipes.recipe import Corpus, CorpusField

if TYPE_CHECKING:
    from torch import nn

    from evomerge.operators.training.healing import Healed

TRAINING = True

_RATES: dict[Weights, float] = {"lora": 1e-3, "full": 2e-5}
_LENGTH = 512  # tokens of a row, if nothing is said
_RECORD = "record"  # the metadata's key in the file that is kept


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
    method: Weights = "lora"
    rank: int = Field(default=8, ge=1)
    lr: float | None = Field(default=None, gt=0.0)
    warmup: float = Field(default=0.1, ge=0.0, le=1.0)
    decay: Decay = "cosine"
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
    """The faults that can be told without opening the experts."""
    faults = []
    for domain, file in options.data.items():
        if wrong := corpus.fault(Path(file.path)):
            faults.append(f"data.{domain}: {wrong}")
        if domain not in options.teachers and _taught(options):
            faults.append(f"teachers: has none for {domain}; name an expert, or base")
    strange = [domain for domain in options.teachers if domain not in options.data]
    faults += [f"teachers.{domain}: there is no such domain in data" for domain in strange]
    if options.batch < len(options.data):
        faults.append(f"batch: has a row for {options.batch} of {len(options.data)} domains; raise it")
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and options.length is not None and options.length > longest:
        faults.append(f"length: is more than the {longest} tokens that the model is meant for")
    return faults


def reach(options: Options, config: Any) -> int | None:
    """None: training does not change how far a model is meant to read."""
    return None


def estimate(options: Options, parameters: int) -> Cost:
    """A forecast from the usual shape of a transformer: 128 times as wide as deep, seven matrices a layer."""
    length, steps = options.length or _LENGTH, options.steps
    tokens = steps * _rows_a_step(options) * len(options.data) * length
    if options.tokens is not None:
        tokens = min(tokens, options.tokens)
    width = (128 * parameters / 12) ** (1 / 3)
    trained = parameters if options.method == "full" else round(19 * width**2 / 128 * options.rank)
    answers = 0
    if options.loss.answered and isinstance(options.targets, int):
        answers = 6 * options.targets * options.rows * length * len(options.data)
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
    """Domain -> the file of its texts."""
    return dict(options.data)


def apply(model: nn.Module, options: Options, context: Context) -> Applied:
    """Trains, unless the file of an earlier training is there; then puts into the model what the file holds.

    Raises:
        CandidateError: a file of texts is not the one that is meant or cannot be read, a loss is not finite, or
            the file of the training is damaged or of another model.
        StudyError: the disk does not take a file.
        torch.OutOfMemoryError: the device's memory does not do.
    """
    from evomerge.files import hashed_tensors
    from evomerge.operators.training import weights

    if not context.kept.exists():
        _train(model, options, context)
    kept = hashed_tensors.read(context.kept)
    if kept is None or _RECORD not in kept[1]:
        raise CandidateError(f"{context.kept} is damaged; remove it to train again")
    arrays, record = kept[0], json.loads(kept[1][_RECORD])
    weights.put(model, arrays, record["method"])
    return Applied(lambda: None, {**record, "sha256": kept[1][hashed_tensors.HASH]}, Cost(**record["cost"]))


def _train(model: Any, options: Options, context: Context) -> None:
    """Trains, and writes the file that is kept."""
    import torch
    import transformers

    from evomerge.files import hashed_tensors

    begun = time.monotonic()
    record: dict[str, Any] = {"method": options.method, "steps": 0, "tokens": 0}
    arrays, peak_bytes = dict[str, torch.Tensor](), 0
    if options.steps:
        healed, sources = _heal(model, options, context)
        arrays, peak_bytes = healed.arrays, healed.peak_bytes
        record |= healed.record() | sources
    seconds = time.monotonic() - begun
    disk_bytes = sum(tensor.numel() * tensor.element_size() for tensor in arrays.values())
    record |= {
        "seconds": seconds,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cost": vars(Cost(seconds, record["steps"], record["tokens"], peak_bytes, disk_bytes)),
    }
    hashed_tensors.write(context.kept, arrays, {_RECORD: json.dumps(record)})


def _heal(model: Any, options: Options, context: Context) -> tuple[Healed, dict[str, Any]]:
    """The outcome of the training, and the sha256 of the texts and teachers that it learned from."""
    from evomerge.operators.training import healing, lessons
    from evomerge.operators.training.loop import Course
    from evomerge.operators.training.teachers import Parents
    from evomerge.operators.training.weights import Trainable

    vocabulary = model.get_output_embeddings().weight.shape[0]
    parents = Parents(context.parent, context.identity, vocabulary, options.loss.temperature)
    length = options.length or lessons.row_length(model, _LENGTH)
    hashes, rows = lessons.read(options.data, context.tokenizer, length, options.rows, vocabulary)
    teaching = lessons.Teaching(
        teachers=_teacher_of(options),
        writes=options.text == "teacher",
        targets=options.targets if options.loss.answered else None,
        batch_tokens=options.batch_tokens,
    )
    end = context.tokenizer.eos_token_id
    learned = lessons.taught(model, rows, teaching, parents, folder=context.folder, end=end)
    course = Course(
        steps=options.steps,
        lr=options.lr or _RATES[options.method],
        tokens=options.tokens,
        seconds=options.seconds,
        warmup=options.warmup,
        decay=options.decay,
        clip=options.clip,
        batch_tokens=options.batch_tokens,
    )
    trainable = Trainable(options.method, options.rank, context.seed, length, options.checkpointing)
    each, report = _rows_a_step(options), context.report
    healed = healing.heal(model, learned, options.loss, course, trainable, each=each, report=report)
    identities = {name: parents.sha256(name) for name in sorted(teachers(options))}
    return healed, {"data": hashes, "teachers": identities}


def _rows_a_step(options: Options) -> int:
    """Rows of each domain in a step."""
    return max(1, options.batch // len(options.data))


def _taught(options: Options) -> bool:
    """Whether any teacher is needed."""
    return options.loss.answered or options.text == "teacher"


def _teacher_of(options: Options) -> dict[str, str]:
    """Domain -> the model that teaches it; {} where no teacher is needed."""
    if not _taught(options):
        return {}
    return {domain: name for domain, name in options.teachers.items() if domain in options.data}
