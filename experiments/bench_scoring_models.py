"""The models of the scoring benchmark, and how a new candidate's weights are put into one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_scoring_tasks import Demo, English, Language
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from evomerge.demo import family

_REAL = Path(__file__).resolve().parents[1] / ".cache" / "smollm2" / "models" / "base"
_POSITIONS = 4096


@dataclass(frozen=True)
class Subject:
    """A live model on CPU, its tokenizer, and the language of its tasks.

    Attributes:
        told: says in words what the model is.
        large: whether it has more than 50 million parameters.
    """

    model: Any
    tokenizer: Any
    language: Language
    told: str
    large: bool


def load(which: str, dtype: str, seed: int) -> Subject:
    """The model that `which` names: tiny, smollm2, or the folder of a model."""
    torch.manual_seed(seed)
    if which == "tiny":
        return _tiny(dtype)
    folder = _REAL if which == "smollm2" else Path(which)
    if which == "smollm2" and not folder.is_dir():
        return _shape(dtype, seed)
    if not folder.is_dir():
        raise SystemExit(f"--model: {which} is neither tiny nor smollm2 nor a folder")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    told = "SmolLM2-135M-Instruct, real weights" if folder == _REAL else f"the weights in {which}"
    demo = isinstance(tokenizer.get_vocab().get("reverse("), int)
    return _subject(model, tokenizer, Demo() if demo else English(), told)


def _subject(model: Any, tokenizer: Any, language: Language, told: str) -> Subject:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    told = f"{told}; {parameters / 1e6:.1f} M parameters"
    return Subject(model.requires_grad_(False).eval(), tokenizer, language, told, parameters > 50_000_000)


def _tiny(dtype: str) -> Subject:
    settings, tokenizer = family.Settings(), family.tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    told = f"the demo's shape and tokenizer, random weights, {_POSITIONS} positions instead of 64"
    return _subject(_random(config, dtype), tokenizer, Demo(), told)


def _shape(dtype: str, seed: int) -> Subject:
    """SmolLM2-135M's shape with random weights, and a tokenizer trained on the tasks' words."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    told = "SmolLM2-135M's shape, random weights, a tokenizer trained on the tasks' words (the real weights are "
    told += "made by `python experiments/smollm2/prepare.py`)"
    return _subject(_random(config, dtype), _trained_tokenizer(seed), English(), told)


def _random(config: LlamaConfig, dtype: str) -> Any:
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def _trained_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    language, rng = English(), random.Random(seed)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    frame = f"{language.start}{language.end}{''.join(map(language.listed, language.letters))}"
    core.train_from_iterator([frame, *(language.fact(rng) for _ in range(2000))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


class Candidates:
    """Overwrites a model's weights in place: multiplies each tensor by a factor near 1, another one each time."""

    def __init__(self, model: Any, seed: int) -> None:
        self._parameters = list(model.parameters())
        self._factors = [1.0] * len(self._parameters)
        self._rng = random.Random(seed)

    @torch.no_grad()
    def next(self) -> None:
        """Makes the next candidate. Factors multiply the first weights, so that weights do not drift."""
        for at, parameter in enumerate(self._parameters):
            factor = self._rng.uniform(0.98, 1.02)
            parameter.mul_(factor / self._factors[at])
            self._factors[at] = factor
