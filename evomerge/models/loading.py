"""Loads a model folder by transformers: the live model, its tokenizer, and its skeleton without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from evomerge.errors import CheckpointError, first_line
from evomerge.models.custom_code import refuse_custom_code
from evomerge.models.live_weights import saved_buffers

# Keeps transformers from adding an adapter that lies beside a model's weights: it is looked for in this folder.
_NO_ADAPTER = {"subfolder": "no adapter"}
_ALIGNMENT = 64  # bytes
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


def auto_class(config: Any) -> Any:
    """The class of transformers' that opens a model whole.

    That is `AutoModelForCausalLM`, and `AutoModelForImageTextToText` for models which the causal class does not
    know, or of which it builds the text part alone.
    """
    kind = type(config)
    causal, whole = AutoModelForCausalLM._model_mapping, AutoModelForImageTextToText._model_mapping
    if kind not in whole:
        return AutoModelForCausalLM
    if kind not in causal:
        return AutoModelForImageTextToText
    model: Any = causal[kind]
    named = model.__name__ in (getattr(config, "architectures", None) or ())
    return AutoModelForCausalLM if named or model.config_class is kind else AutoModelForImageTextToText


def read_config(folder: Path, where: str = "", *, trust: bool = False) -> Any:
    """A model folder's config.

    Args:
        trust: whether to run the Python code that the folder brings along.

    Raises:
        CheckpointError: transformers does not know the model, or needs code of the folder's.
    """
    refuse_custom_code(folder, where, trust=trust)
    with loading(folder, where):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust)


def model_of(config: Any) -> Any:
    """The model that a config describes, with random weights. Inside `torch.device("meta")` it has none."""
    return auto_class(config).from_config(config, trust_remote_code=_is_custom(config))


def whole_model(folder: Path, trust: bool, **options: Any) -> Any:
    """A folder's model with its weights, as transformers' `from_pretrained` opens it, without an adapter beside it.

    Args:
        options: further arguments of `from_pretrained`.
    """
    config = read_config(folder, trust=trust)
    return auto_class(config).from_pretrained(
        folder, config=config, trust_remote_code=trust, adapter_kwargs=_NO_ADAPTER, **options
    )


def _is_custom(config: Any) -> bool:
    """Whether a config's class comes from a folder. Such a config exists only where its code is trusted."""
    return type(config).__module__.startswith("transformers_modules")


def load_model(folder: Path, dtype: str, device: str, rows: int | None = None, *, trust: bool = False) -> Any:
    """A model ready to be scored: in evaluation mode, without gradients.

    Args:
        rows: the number of tokens to which the vocabulary is resized. New rows hold no sound values: the caller
            overwrites them.
        trust: whether to run the Python code that the folder brings along.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    with loading(folder):
        model = whole_model(folder, trust, dtype=getattr(torch, dtype))
        if rows is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
    align(model)
    return model.to(device).eval().requires_grad_(False)


def align(model: Any) -> None:
    """Moves parameters to where matrix products read best; elsewhere they round otherwise.

    transformers leaves them where they lie in a mapped file, at a place that the length of its header decides.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % _ALIGNMENT:
            parameter.data = parameter.data.clone()


def load_tokenizer(folder: Path, *, trust: bool = False) -> Any:
    """A model folder's tokenizer.

    Args:
        trust: whether to run the Python code that the folder brings along.

    Raises:
        CheckpointError: there is none.
    """
    if not has_tokenizer(folder):
        raise CheckpointError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy it from where the "
            "model came from"
        )
    refuse_custom_code(folder, trust=trust)
    with loading(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer's files."""
    return any(any(folder.glob(pattern)) for pattern in _TOKENIZERS)


def empty_model(folder: Path, where: str, *, trust: bool = False) -> Any:
    """The model that a folder's config describes, without weights.

    Raises:
        CheckpointError: there is no config, or transformers does not know the model.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{where}: {folder} has no config.json; copy it from where the model came from")
    config = read_config(folder, where, trust=trust)
    with loading(folder, where), torch.device("meta"):
        return model_of(config)


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights.

    Attributes:
        shapes: parameter -> its shape, tied parameters once.
        tied: second name of a tied parameter -> its name in `shapes`.
        rows: the names of parameters with one row for each token: input embedding, head, the head's bias.
        conv1d: the names of weights that are kept as (inputs, outputs).
        buffers: saved buffer with a fraction -> its shape.
        whole_numbers: saved tensor of whole numbers -> its shape.
        text: the names of the modules that read and write text: the layers' stack, and the head.
    """

    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    rows: tuple[str, ...]
    conv1d: frozenset[str]
    buffers: dict[str, tuple[int, ...]]
    whole_numbers: dict[str, tuple[int, ...]]
    text: tuple[str, str]

    @cached_property
    def names(self) -> frozenset[str]:
        """All names under which the model has a tensor that it saves, second names of tied ones included."""
        return frozenset((*self.shapes, *self.tied, *self.buffers, *self.whole_numbers))


def skeleton(folder: Path, where: str = "base", *, trust: bool = False) -> Skeleton:
    """The skeleton of a model folder. Allocates no weights.

    Raises:
        CheckpointError: transformers does not know the model.
    """
    model = empty_model(folder, where, trust=trust)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = list(model.named_parameters(remove_duplicate=False))
    head, embedding = (known_part(read) for read in (model.get_output_embeddings, model.get_input_embeddings))
    per_token = (getattr(embedding, "weight", None), getattr(head, "weight", None), getattr(head, "bias", None))
    parameters, buffers = dict(model.named_parameters()), saved_buffers(model)
    return Skeleton(
        shapes={name: tuple(p.shape) for name, p in parameters.items() if p.is_floating_point()},
        tied={name: names[id(p)] for name, p in every if names[id(p)] != name},
        rows=tuple(dict.fromkeys(names[id(p)] for p in per_token if id(p) in names)),
        conv1d=frozenset(f"{n}.weight" for n, module in model.named_modules() if isinstance(module, Conv1D)),
        buffers={name: tuple(b.shape) for name, b in buffers.items() if b.is_floating_point()},
        whole_numbers={
            name: tuple(tensor.shape)
            for name, tensor in {**parameters, **buffers}.items()
            if not tensor.is_floating_point()
        },
        text=text_modules(model),
    )


def text_modules(model: Any) -> tuple[str, str]:
    """The names of the modules that read and write a model's text: the stack of layers, and the head.

    A name is empty where transformers does not tell the module.
    """
    names = {id(module): name for name, module in model.named_modules()}
    decoder, head = known_part(model.get_decoder), known_part(model.get_output_embeddings)
    return (names.get(id(decoder), ""), names.get(id(head), ""))


def known_part(read: Callable[[], Any]) -> Any:
    """A part of a model; None where the model does not tell it."""
    try:
        return read()
    except (NotImplementedError, AttributeError):
        return None
