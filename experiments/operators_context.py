"""A tiny byte-level Llama that reads 64 bytes, and what context extension makes of it at 256.

0.12 M parameters, two layers, half a minute of one CPU core. Trained on the prose of the Python reference and on
pass keys hidden in it, no longer than 64 bytes. What it is asked afterwards comes from the hold-out half of that.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.operators import Context, context_extension
from evomerge.scoring.documents import hiding
from evomerge.scoring.documents.texts import read_text, sectors
from evomerge.searching.documents import Fidelity
from evomerge.searching.maximize import maximize
from evomerge.searching.spaces.genes import Coordinate, Genome

WINDOW, TARGET = 64, 256
FACTOR = TARGET / WINDOW
TAIL = 32
HEADS = 4
_EXAMPLES = 6000  # pass keys to draw from
_AROUND = len(" Key=0. \nKey=0")  # what a pass key takes besides its passage
_CLIMBED = 96  # passages that a search climbs
_DIGITS = torch.tensor(list(b"0123456789"))


@dataclass(frozen=True)
class PassKeys:
    """Text with a pass key hidden in it, asked for at the end.

    Phrases are shorter than those of the task `passkey`: WINDOW bytes must leave room for some distance. The text
    has no other digit.

    Attributes:
        rows: (n, length) bytes, padded with blanks behind the answer.
        at: (n,) where the answer is, a digit.
    """

    rows: Tensor
    at: Tensor


@dataclass(frozen=True)
class Exam:
    """What the model is asked. texts: (n, TARGET) bytes of running text."""

    texts: Tensor
    keys: PassKeys

    @property
    def short(self) -> Tensor:
        """The texts' ends, as much as fits without extension."""
        return self.texts[:, -WINDOW:]


def parts() -> dict[str, list[bytes]]:
    """What is trained on, what a search climbs, and what both never see."""
    text = read_text("python")
    known = sectors(text, "search")
    return {"train": known[:-1], "climb": known[-1:], "holdout": sectors(text, "holdout")}


def exam(part: str, count: int = 128) -> Exam:
    """So many texts and pass keys of a part."""
    rng = random.Random(f"exam/{part}")
    sources = parts()[part]
    texts = torch.tensor([list(_passage(sources, TARGET, rng)) for _ in range(count)])
    return Exam(texts, pass_keys(sources, TARGET, count, rng))


def pass_keys(
    sources: Sequence[bytes], length: int, count: int, rng: random.Random, shortest: int | None = None
) -> PassKeys:
    """Pass keys in at most `length` bytes; in `shortest` at the least, if given."""
    rows, at = [], []
    for _ in range(count):
        size = length if shortest is None else rng.randint(shortest, length)
        digit = rng.randrange(10)
        passage = _passage(sources, size - _AROUND, rng)
        while any(48 <= byte < 58 for byte in passage):
            passage = _passage(sources, size - _AROUND, rng)
        row = f"{hiding.hide(passage, [f'Key={digit}.'], [rng.random()])}\nKey={digit}".encode()
        rows.append(list(row.ljust(length)))
        at.append(len(row) - 1)
    return PassKeys(torch.tensor(rows), torch.tensor(at))


def _passage(sources: Sequence[bytes], size: int, rng: random.Random) -> bytes:
    source = rng.choice(sources)
    start = rng.randrange(len(source) - size)
    return source[start : start + size]


def untrained(length: int) -> LlamaForCausalLM:
    """The tiny model, for texts of so many bytes: 0.12 M parameters, drawn from torch's generator."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def train(seed: int, steps: int = 700, batch: int = 24) -> LlamaForCausalLM:
    """The tiny model, trained at WINDOW bytes. The same seed gives the same weights on one thread."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = untrained(WINDOW)
    learn(model, WINDOW, steps, seed, batch=batch, rate=4e-3, warmup=30)
    return model


def learn(
    model: LlamaForCausalLM, length: int, steps: int, seed: int, *, batch: int, rate: float, warmup: int = 1
) -> None:
    """Trains in place on rows of `length` bytes: half running text, half pass keys, of which only the key."""
    source = torch.tensor(list(b"".join(parts()["train"])))
    examples = _EXAMPLES if length == WINDOW else steps * batch
    keys = pass_keys(parts()["train"], length, examples, random.Random(f"train/{seed}"), shortest=_AROUND + 4)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / warmup, (steps - step) / steps)
        starts = torch.randint(len(source) - length, (batch // 2, 1), generator=draw)
        text = source[starts + torch.arange(length)]
        chosen = torch.randint(len(keys.rows), (batch - batch // 2,), generator=draw)
        asked, at = keys.rows[chosen], keys.at[chosen]
        hidden = model.model(input_ids=torch.cat([text, asked]), use_cache=False)[0]
        prose = F.cross_entropy(model.lm_head(hidden[: len(text), :-1]).flatten(0, 1), text[:, 1:].flatten())
        lines = torch.arange(len(asked))
        found = F.cross_entropy(model.lm_head(hidden[len(text) + lines, at - 1]), asked[lines, at])
        optimizer.zero_grad()
        (prose + found).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


@torch.no_grad()
def tail_losses(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Nats per byte of the last TAIL bytes of each row."""
    hidden = model.model(input_ids=rows, use_cache=False)[0][:, -TAIL - 1 : -1]
    losses = F.cross_entropy(model.lm_head(hidden).flatten(0, 1), rows[:, -TAIL:].flatten(), reduction="none")
    return losses.view(len(rows), TAIL).mean(1)


def tail_loss(model: LlamaForCausalLM, rows: Tensor) -> float:
    """Their mean."""
    return float(tail_losses(model, rows).mean())


@torch.no_grad()
def found(model: LlamaForCausalLM, keys: PassKeys) -> float:
    """The share of pass keys found among the ten digits."""
    lines = torch.arange(len(keys.rows))
    hidden = model.model(input_ids=keys.rows, use_cache=False)[0][lines, keys.at - 1]
    guesses = _DIGITS[model.lm_head(hidden)[:, _DIGITS].argmax(-1)]
    return float((guesses == keys.rows[lines, keys.at]).float().mean())


# --- what is compared ------------------------------------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "ntk": {"method": "ntk"},
    "yarn": {"method": "yarn"},
    "yarn, not truncated": {"method": "yarn", "truncate": False},
    "linear": {"method": "linear"},
    "llama3": {"method": "llama3"},
}
TUNED = ("none", "ntk", "yarn", "linear")
TUNING_STEPS = 40
_CONTEXT = Context(seed=0, tokenizer=None, folder=Path(), kept=Path())  # a pure operator asks for none of these


@dataclass(frozen=True)
class Reading:
    """What a model answers.

    Attributes:
        tail: nats per byte of the last 32 of 256 bytes. window: the same 32 after 32 others: what fits anyway.
        keys: share of pass keys found in 256 bytes.
    """

    tail: float
    window: float
    keys: float


@contextmanager
def stretched(model: LlamaForCausalLM, options: dict[str, Any]) -> Iterator[None]:
    """The model with its context extended to TARGET; as it was afterwards. Without options: as it is."""
    if not options:
        yield
        return
    chosen = context_extension.Options.model_validate({"factor": FACTOR, **options})
    undo = context_extension.apply(model, chosen, _CONTEXT).undo
    try:
        yield
    finally:
        undo()


def read(model: LlamaForCausalLM, asked: Exam) -> Reading:
    return Reading(tail_loss(model, asked.texts), tail_loss(model, asked.short), found(model, asked.keys))


def untuned(model: LlamaForCausalLM, asked: Exam, methods: Sequence[str] = tuple(METHODS)) -> dict[str, Reading]:
    """What each method makes of the model as it is."""
    readings = {}
    for name in methods:
        with stretched(model, METHODS[name]):
            readings[name] = read(model, asked)
    return readings


def tuned(model: LlamaForCausalLM, asked: Exam, seed: int, methods: Sequence[str] = TUNED) -> dict[str, Reading]:
    """The same after TUNING_STEPS steps of training at TARGET bytes, each method on a copy of its own."""
    readings = {}
    for name in methods:
        learner = copy.deepcopy(model)
        with stretched(learner, METHODS[name]):
            learn(learner, TARGET, TUNING_STEPS, seed + 1000, batch=8, rate=1e-3)
            readings[name] = read(learner, asked)
    return readings


# --- a search over YaRN's options ------------------------------------------------------------------------------

OPTIONS = (
    Coordinate("beta_fast", 1.5, 64.0, context_extension.BETA_FAST, log=True),
    Coordinate("beta_slow", 0.25, 4.0, context_extension.BETA_SLOW, log=True),
    Coordinate("attention_scale", 0.9, 1.2, 1.0, log=False),
)


def searched(model: LlamaForCausalLM, seed: int, candidates: int) -> dict[str, float]:
    """The options that CMA-ES finds on the part `climb`: tails at TARGET, and as much inside the window.

    Each document is a passage; its score the log-likelihood per byte of its tail, after 224 bytes and after 32.
    """
    asked = exam("climb", _CLIMBED)

    def evaluate(genome: Genome, ids: Sequence[int]) -> np.ndarray:
        chosen = torch.tensor(list(ids))
        with stretched(model, _yarn(genome)):
            long = tail_losses(model, asked.texts[chosen])
            short = tail_losses(model, asked.short[chosen])
        return -(long + short).double().numpy() / 2

    fidelity = Fidelity.model_validate({"batch": "all", "final": False})
    chosen = maximize(
        evaluate, OPTIONS, _CLIMBED, sampler="pycma", fidelity=fidelity, candidates=candidates, seed=seed
    ).best
    return {option.name: float(chosen[option.name]) for option in OPTIONS}


def _yarn(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": "yarn", "truncate": False, **{one.name: float(options[one.name]) for one in OPTIONS}}


def compared(model: LlamaForCausalLM, asked: Exam, options: Mapping[str, float]) -> dict[str, Reading]:
    """YaRN as it comes, and with the options found, on documents that the search did not see."""
    readings = untuned(model, asked, ("yarn", "yarn, not truncated"))
    with stretched(model, _yarn(options)):
        readings["found"] = read(model, asked)
    return readings
