"""Loads a model folder by transformers: the live model, its tokenizer, and its skeleton without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from evomerge.errors import CheckpointError, first_line

_TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


@contextmanager
def loading(folder: Path, where: str = "") -> Iterator[None]:
    """Turns any error of transformers for a folder that it cannot read into one line.

    Args:
        where: what names the model in a person's file, for the message.

    Raises:
        CheckpointError: for any error inside.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a damaged config can make transformers raise anything
        prefix = f"{where}: " if where else ""
        raise CheckpointError(f"{prefix}transformers cannot open {folder}: {first_line(error)}") from error


def quiet() -> None:
    """Silences the progress bars and notices of transformers, which would tear a live view."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_model(folder: Path, dtype: str, device: str, rows: int | None = None) -> Any:
    """A model ready to be scored: in evaluation mode, without gradients.

    Args:
        rows: the number of tokens to which the vocabulary is resized. New rows hold no sound values: the caller
            overwrites them.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    with loading(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        if rows is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """A model folder's tokenizer.

    Raises:
        CheckpointError: there is none.
    """
    if not has_tokenizer(folder):
        raise CheckpointError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy it from where the "
            "model came from"
        )
    with loading(folder):
        return AutoTokenizer.from_pretrained(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer's files."""
    return any(any(folder.glob(pattern)) for pattern in _TOKENIZERS)


def empty_model(folder: Path, where: str) -> Any:
    """The model that a folder's config describes, without weights.

    Raises:
        CheckpointError: there is no config, or transformers does not know the model.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{where}: {folder} has no config.json; copy it from where the model came from")
    with loading(folder, where), torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights.

    Attributes:
        shapes: parameter -> its shape, tied parameters once.
        tied: second name of a tied parameter -> its name in `shapes`.
        rows: the names of parameters with one row for each token: input embedding, head, the head's bias.
        conv1d: the names of weights that are kept as (inputs, outputs).
    """

    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    rows: tuple[str, ...]
    conv1d: frozenset[str]


def skeleton(folder: Path, where: str = "base") -> Skeleton:
    """The skeleton of a model folder. Allocates no weights.

    Raises:
        CheckpointError: transformers does not know the model.
    """
    model = empty_model(folder, where)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = list(model.named_parameters(remove_duplicate=False))
    head = model.get_output_embeddings()
    per_token = (model.get_input_embeddings().weight, getattr(head, "weight", None), getattr(head, "bias", None))
    return Skeleton(
        shapes={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        tied={name: names[id(p)] for name, p in every if names[id(p)] != name},
        rows=tuple(dict.fromkeys(names[id(p)] for p in per_token if id(p) in names)),
        conv1d=frozenset(f"{n}.weight" for n, module in model.named_modules() if isinstance(module, Conv1D)),
    )
