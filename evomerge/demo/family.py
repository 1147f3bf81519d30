"""Trains the demo's family of models from scratch: a base on a mixture of skills, then one expert per skill.

Every expert starts from the base and sees its own skill with a little of the others, so that it does not forget
them. The models are ordinary Hugging Face folders of tiny Llamas; a minute or two on one CPU core trains them all.

A finished model folder is not trained again. A folder is written aside and renamed once it is whole, and its
`training.json` records what it was trained with: other settings, another seed or a changed base train it anew.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from evomerge.files.writing import folder_aside
from evomerge.scoring.documents import skills

# Is called with the steps done, the steps in all, and what is being trained.
Progress = Callable[[int, int, str], None]

RECORD = "training.json"
PAD, UNKNOWN, END = "<pad>", "<unk>", "<eos>"


@dataclass(frozen=True)
class Course:
    """How one model is trained: AdamW with a short warm-up and a linear decay to zero.

    Attributes:
        learning_rate: the highest one.
        shares: skill -> its share of the examples; shares need not add up to one.
    """

    steps: int
    learning_rate: float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Settings:
    """The family: the shape of its models, and how each is trained.

    The base knows reversing best and sorting least. Experts train gently: larger steps make better experts whose
    differences from the base no longer add up. Sorting and doubling are learned at reversing's cost, so their
    experts rehearse it most.

    Attributes:
        hidden, layers, heads, mlp: the shape of the models: width, depth, attention heads, width of the MLP.
        batch: examples per step.
        warmup: steps until the learning rate is at its highest.
        base: the base's training.
        experts: skill -> its expert's training.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    mlp: int = 320
    batch: int = 64
    warmup: int = 20
    base: Course = Course(170, 2e-3, {"reverse": 1.0, "sort": 0.12, "double": 0.3})
    experts: Mapping[str, Course] = field(
        default_factory=lambda: {
            "reverse": Course(80, 4e-4, {"reverse": 1.0, "sort": 0.02, "double": 0.03}),
            "sort": Course(60, 4e-4, {"reverse": 0.2, "sort": 1.0, "double": 0.03}),
            "double": Course(60, 4e-4, {"reverse": 0.2, "sort": 0.02, "double": 1.0}),
        }
    )


def train_family(
    folder: Path, *, seed: int = 0, settings: Settings | None = None, progress: Progress | None = None
) -> dict[str, Path]:
    """Trains those of the family's models that are not there yet.

    Args:
        folder: the models go to `folder/models/base` and `folder/models/expert-<skill>`.
        seed: the seed of the weights and the examples; the same seed gives the same family.
        settings: shape and courses; the shipped ones unless given.
        progress: is called after every training step, and once for a model that was already there.

    Returns:
        "base" and each expert's skill, in the settings' order -> the model's folder.
    """
    settings = settings or Settings()
    courses = {"base": settings.base, **settings.experts}
    paths = {name: folder / "models" / (name if name == "base" else f"expert-{name}") for name in courses}
    total = sum(course.steps for course in courses.values())
    done = 0
    for name, course in courses.items():
        record = _record(settings, name, seed)
        if _is_finished(paths[name], record):
            _report(progress, done + course.steps, total, f"{name}: already trained")
        else:
            before = done
            base = None if name == "base" else paths["base"]
            with _no_bars(), _reproducible(f"{name}/{seed}"):
                model = _start(settings, base)
                for step in _train(model, course, settings, seed=f"{name}/{seed}"):
                    _report(progress, before + step, total, f"training {name}")
                _save(model, paths[name], record)
        done += course.steps
    return paths


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, skill name or closing bracket: `sort(`, `b`, `a`, `)=`, `a`, `b`."""
    calls = [f"{name}(" for name in skills.SKILLS]
    words = [PAD, UNKNOWN, END, *calls, ")=", *skills.DIGITS, *skills.LETTERS]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    model.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+\(|\)=|[\s\S]"), "isolated")
    model.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )


def _record(settings: Settings, name: str, seed: int) -> dict[str, Any]:
    """All that decides a model's weights. An expert's record holds its base's course too."""
    shape = {key: value for key, value in asdict(settings).items() if key not in ("base", "experts")}
    course = settings.base if name == "base" else settings.experts[name]
    return {"model": name, "seed": seed, **shape, "base": asdict(settings.base), "course": asdict(course)}


def _is_finished(path: Path, record: dict[str, Any]) -> bool:
    """Whether a folder holds a model that was trained with this record."""
    try:
        written = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(written == record)


def _report(progress: Progress | None, done: int, total: int, text: str) -> None:
    if progress is not None:
        progress(done, total, text)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keeps transformers' progress bars for loading and saving from crossing the caller's."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _reproducible(key: str) -> Iterator[None]:
    """Gives torch one thread and a generator that is seeded by `key`; both are put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.Random(key).getrandbits(63))
            yield
    finally:
        torch.set_num_threads(threads)


def _start(settings: Settings, base: Path | None) -> LlamaForCausalLM:
    """A model with fresh weights, or with the base's.

    Attention is eager: on a CPU the backward pass of the fused kernel is slow on short sequences.
    """
    if base is not None:
        return LlamaForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=settings.hidden,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=words.model_max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def _train(model: LlamaForCausalLM, course: Course, settings: Settings, *, seed: str) -> Iterator[int]:
    """Trains a model in place, and yields the number of steps done after each step.

    The loop of `operators.training` is another one on purpose: it splits a step by tokens and trains without weight
    decay, so that these models would come out with other bits.
    """
    pairs = _mixture(course, settings.batch, seed)
    words = tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    model.train()
    for step in range(course.steps):
        inputs, labels = _tensors(words, pairs[step * settings.batch : (step + 1) * settings.batch])
        height = min((step + 1) / settings.warmup, (course.steps - step) / course.steps)
        optimizer.param_groups[0]["lr"] = course.learning_rate * height
        optimizer.zero_grad()
        _loss(model, inputs, labels).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step + 1
    model.eval()


def _mixture(course: Course, batch: int, seed: str) -> list[tuple[str, str]]:
    """The examples, prompt and answer, of all the steps of a course: skills are drawn by their shares."""
    rng = random.Random(f"mixture/{seed}")
    names = rng.choices(list(course.shares), weights=list(course.shares.values()), k=course.steps * batch)
    drawn = {
        name: iter(skills.examples(name, names.count(name), seed=rng.getrandbits(32))) for name in course.shares
    }
    return [next(drawn[name]) for name in names]


def _tensors(words: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and the tokens to predict, both int64 (batch, length); -100 where nothing is learned.

    Only answers are learned, with the end token after them: a prompt's letters are random.
    """
    rows = [(words.encode(prompt), words.encode(answer + END)) for prompt, answer in pairs]
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    inputs = torch.full((len(rows), length), words.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        inputs[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) - 1 : end - 1] = torch.tensor(answer)
    return inputs, labels


def _loss(model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens. Rows are padded on the right: causal attention needs no mask."""
    learned = labels != -100
    hidden = model.model(input_ids=inputs).last_hidden_state[learned]
    return F.cross_entropy(model.lm_head(hidden), labels[learned])


def _save(model: LlamaForCausalLM, path: Path, record: dict[str, Any]) -> None:
    """Writes a model's folder aside, with its record last, and then puts it in its place."""
    aside = folder_aside(path)
    model.save_pretrained(aside)
    tokenizer().save_pretrained(aside)
    (aside / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)
