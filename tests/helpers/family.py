"""A random tiny family of models with local tasks, and experiments on it: real checkpoints, nothing trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefghij"

_TASK = """
task: {name}
custom_dataset: !function letters.{name}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""

_LETTERS = """
import random

import datasets


def _documents(seed, shift):
    generator = random.Random(seed)
    rows = []
    for _ in range(24):
        prompt = "".join(generator.choices("abcdefghij", k=5)) + "="
        choices = ["".join(generator.choices("abcdefghij", k=2)) for _ in range(4)]
        rows.append({"prompt": prompt, "choices": choices, "gold": generator.randrange(4)})
    return {"test": datasets.Dataset.from_list(rows)}


def first(**kwargs):
    return _documents(1, 0)


def second(**kwargs):
    return _documents(2, 0)


def first_test(**kwargs):
    return _documents(3, 0)
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", "<unk>", "=", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def save_family(folder: Path, dtype: torch.dtype = torch.float32, layers: int = 4) -> Path:
    """A base and the experts `ant` and `bee`, random neighbours of it, under FOLDER/models."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=14,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    base = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokenizer = make_tokenizer()
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for name in ("base", "ant", "bee"):
        model = LlamaForCausalLM(config)
        model.load_state_dict(state)
        if name != "base":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        home = folder / "models" / name
        model.to(dtype).save_pretrained(home)
        tokenizer.save_pretrained(home)
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "letters.py").write_text(_LETTERS)
    for name in ("first", "second", "first_test"):
        (tasks / f"{name}.yaml").write_text(_TASK.format(name=name))
    return folder


SPACE: dict[str, Any] = {
    "method": "dare_ties",
    "layers": {"groups": 2},
    "modules": ["attention", "mlp"],
    "genes": {
        "weight": {"low": 0.0, "high": 1.5, "init": 0.5, "per": ["layer", "module", "expert"]},
        "density": {"low": 0.1, "high": 1.0, "init": 0.6, "per": ["expert"]},
    },
}

FITNESS: dict[str, Any] = {
    "include": "tasks",
    "search": [
        {"task": "first", "metric": "acc", "climb": "probability"},
        {"task": "second", "metric": "acc", "climb": "probability"},
    ],
    "holdout": [{"task": "first_test", "metric": "acc"}],
}


def experiment_mapping(family: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """An experiment on the family; `changes` replace keys, None removes them."""
    data: dict[str, Any] = {
        "base": str(family / "models/base"),
        "experts": {"ant": str(family / "models/ant"), "bee": str(family / "models/bee")},
        "space": SPACE,
        "fitness": {**FITNESS, "include": str(family / "tasks")},
        "sampler": {"name": "cma", "population": 6},
        "budget": {"candidates": 18},
        "workers": {"backend": "inline"},
        "study": str(folder),
    }
    data.update(changes)
    return {key: value for key, value in data.items() if value is not None}
