"""What the sections of the merge benchmark share: random families on disk, recipes for them, a clock.

A family is a base and K experts shaped like a Llama, written as sharded bfloat16 safetensors with a config and a
tiny tokenizer. Base weights are normal with deviation 0.02; an expert's differ from them by 0.002. The numbers
are slices of one block of normal draws, taken at random places: no sort, hash or merge is faster for it, and a
family of billions is made at the speed of the disk.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.files import hashing
from evomerge.models.checkpoints import Checkpoint
from evomerge.recipes.recipe import Recipe

METHODS = ("dare_ties", "ties")
MODULES = ("attention", "mlp")
_BLOCK, _CHUNK = 1 << 23, 1 << 22


def _shape(
    hidden: int, inner: int, layers: int, heads: tuple[int, int], vocabulary: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


SHAPES = (
    _shape(256, 768, 8, (4, 2), 8192, tied=True),
    _shape(576, 1536, 30, (9, 3), 49152, tied=True),  # SmolLM2-135M
    _shape(2048, 8192, 16, (32, 8), 128256, tied=True),  # Llama-3.2-1B
    _shape(4096, 14336, 32, (32, 8), 128256, tied=False),  # Llama-3-8B
)


def config_of(parameters: int) -> LlamaConfig:
    """The smallest of SHAPES with about that many parameters, with as many layers as come nearest."""
    for shape in SHAPES:
        full = LlamaConfig(**shape, max_position_embeddings=2048, bos_token_id=None, eos_token_id=1, pad_token_id=0)
        outside, layer = _count(full, 0), _count(full, 1) - _count(full, 0)
        if outside + layer * full.num_hidden_layers >= 0.95 * parameters:
            break
    layers = round((parameters - outside) / layer)
    full.num_hidden_layers = min(max(layers, 1), full.num_hidden_layers)
    return full


def _count(config: LlamaConfig, layers: int) -> int:
    hidden, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    attention = 2 * hidden * hidden + 2 * hidden * head * config.num_key_value_heads
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    return embeddings + hidden + layers * (attention + 3 * hidden * config.intermediate_size + 2 * hidden)


def shapes_of(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The parameters of a model of this config, name -> shape, tied ones once."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def live_model(config: LlamaConfig) -> LlamaForCausalLM:
    """A bfloat16 model on CPU whose parameters are zero and in memory."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu").requires_grad_(False)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.zero_()
    return model


class Noise:
    """Normal numbers for any shape at the speed of a copy."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        self._places = random.Random(seed)
        generator = torch.Generator(device).manual_seed(seed)
        self._block = torch.randn(_BLOCK, generator=generator, device=device)

    def draw(self, shape: Sequence[int]) -> torch.Tensor:
        """float32 of this shape."""
        out = self._block.new_empty(math.prod(shape))
        for start in range(0, out.numel(), _CHUNK):
            part = out[start : start + _CHUNK]
            place = self._places.randrange(_BLOCK - _CHUNK)
            part.copy_(self._block[place : place + part.numel()])
        return out.view(*shape)

    def models(self, shape: Sequence[int], count: int) -> list[torch.Tensor]:
        """One tensor of a base and of its `count` experts, in bfloat16."""
        base = self.draw(shape).mul_(0.02)
        return [base.bfloat16(), *((base + self.draw(shape).mul_(0.002)).bfloat16() for _ in range(count))]


@dataclass(frozen=True)
class Family:
    """A base and its experts on disk.

    Attributes:
        sha256: of each model's weights, by name.
        hash_seconds: what finding all of these took.
    """

    folder: Path
    config: LlamaConfig
    experts: tuple[str, ...]
    sha256: dict[str, str]
    hash_seconds: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self.config)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def nbytes(self) -> int:
        """Bytes of one model."""
        return 2 * self.parameters

    def source(self, name: str) -> dict[str, str]:
        """A model as a recipe names it."""
        return {"model": str(self.folder / name), "sha256": self.sha256[name]}

    def open(self) -> tuple[Checkpoint, dict[str, Checkpoint]]:
        """The base and the experts, mapped."""
        opened = {name: Checkpoint(self.folder / name, name, sha) for name, sha in self.sha256.items()}
        return opened.pop("base"), opened

    def recipe(self, method: str, number: int) -> Recipe:
        """The number-th recipe: weights by layer, module group and expert, densities by expert, all random."""
        dice = random.Random(f"{method} {number}")
        layers = self.config.num_hidden_layers

        def weights() -> list[float]:
            return [round(dice.uniform(0.2, 0.8), 4) for _ in range(layers)]

        rows = {module: {expert: weights() for expert in self.experts} for module in (*MODULES, "*")}
        density = {expert: round(dice.uniform(0.5, 0.7), 4) for expert in self.experts}
        return Recipe.model_validate(
            {
                "method": method,
                "base": self.source("base"),
                "experts": {expert: self.source(expert) for expert in self.experts},
                "dtype": "bfloat16",
                "layers": layers,
                "seed": 0,
                "parameters": {"weight": rows, "density": density},
            }
        )


def write_family(folder: Path, parameters: int, experts: int, seed: int) -> Family:
    """Writes a random family of about that many parameters a model, in at least three shards each."""
    config, noise = config_of(parameters), Noise(seed)
    names = tuple(f"expert{k}" for k in range(1, experts + 1))
    homes = [folder / name for name in ("base", *names)]
    for home in homes:
        home.mkdir(parents=True)
        config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
        config.save_pretrained(home)
        _tokenizer().save_pretrained(home)
    shapes = shapes_of(config)
    shards = list(_sharded(shapes))
    home_of = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        drawn = {name: noise.models(shapes[name], experts) for name in shard}
        for position, home in enumerate(homes):
            part = {name: made[position] for name, made in drawn.items()}
            save_file(part, home / file, metadata={"format": "pt"})
        home_of.update(dict.fromkeys(shard, file))
    total = 2 * sum(math.prod(shape) for shape in shapes.values())
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": home_of})
    for home in homes:
        (home / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    start = time.perf_counter()
    sha256 = {home.name: hashing.sha256(Checkpoint(home, home.name)) for home in homes}
    return Family(folder, config, names, sha256, time.perf_counter() - start)


def _sharded(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Tensor names shard by shard: a third of the model each, or 500 MB."""
    limit = min(250_000_000, sum(math.prod(shape) for shape in shapes.values()) // 3)
    shard: list[str] = []
    for name, shape in shapes.items():
        if shard and sum(math.prod(shapes[held]) for held in shard) + math.prod(shape) > limit:
            yield shard
            shard = []
        shard.append(name)
    yield shard


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(("<pad>", "<eos>", "<unk>"))}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


@dataclass(frozen=True)
class Bench:
    """What every section is given.

    Attributes:
        family: number of parameters -> the family, written when first asked for.
        parameters, threads: the model sizes and thread counts to measure.
        scratch: a folder to write in; deleted at the end.
        settings: the parsed command line.
    """

    family: Callable[[int], Family]
    parameters: list[int]
    threads: list[int]
    scratch: Path
    settings: Any


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def spread(times: Sequence[float]) -> list[float]:
    """The first and the third quartile."""
    return statistics.quantiles(times, n=4)[::2] if len(times) > 1 else [times[0], times[0]]


def head(title: str, columns: Sequence[tuple[str, int]]) -> None:
    """Prints a section's title and the heads of its columns."""
    print(f"\n{title}")
    print(" ".join(f"{name:>{width}}" for name, width in columns), flush=True)


def line(columns: Sequence[tuple[str, int]], *cells: object) -> None:
    """Prints one row: floats with three digits that tell, other things as they are."""
    texts = [_number(cell) if isinstance(cell, float) else str(cell) for cell in cells]
    print(" ".join(f"{text:>{width}}" for text, (_, width) in zip(texts, columns, strict=True)), flush=True)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def millions(parameters: int) -> str:
    """8_400_000 -> '8.4 M'."""
    return f"{parameters / 1e6:.1f} M"
