"""Tiny random models of every architecture that the installed transformers has a config for."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto
from zoo_configs import FIRST_ID, VOCABULARY, tiny_config

LETTERS = "abcdefghij"
EXPERTS = ("ant", "bee")
_WORDS = ("<pad>", "<eos>", "<bos>", "<unk>", "=", *LETTERS)


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers: its model type, and the name of the class that its checkpoints have."""

    name: str
    kind: str


def architectures() -> list[Architecture]:
    """Every causal and image-text-to-text architecture, by name. One that has both classes is built with images."""
    causal, images = (
        getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES") for kind in ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")
    )
    return [Architecture(name, kind) for name, kind in sorted({**causal, **images}.items())]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and no token before a text."""
    words = [*_WORDS, *(f"<{number}>" for number in range(len(_WORDS), VOCABULARY))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def build_family(architecture: Architecture, folder: Path) -> Any:
    """Saves a base and its experts in folders of their names, and returns the base.

    Raises:
        Exception: whatever transformers raises of a model that cannot be built.
    """
    torch.manual_seed(0)
    model = getattr(transformers, architecture.kind)._from_config(tiny_config(architecture.name)).float().eval()
    _enliven(model)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("base", *EXPERTS):
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                tensor.copy_(base[key])
            if name != "base":
                _disturb(model)
        model.save_pretrained(folder / name)
        _carry(model, folder / name / "model.safetensors")
        make_tokenizer().save_pretrained(folder / name)
    model.load_state_dict(base)
    return model


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in a folder's files."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def _carry(model: Any, path: Path) -> None:
    """Adds a tensor that published checkpoints have and transformers leaves aside: one of a multi-token head."""
    for pattern in model._keys_to_ignore_on_load_unexpected or ():
        if re.search(r"mtp|layers\\.\d", pattern):
            stem = re.sub(r"\([^)]*\)\??|\.\*", "", pattern.replace(r"\.", ".")).strip("^.")
            tensors = load_file(path) | {f"{stem}.carried.weight": torch.randn(4, 4)}
            save_file(tensors, path, metadata={"format": "pt"})
            return


def _floats(model: Any) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a state dict, tied ones once."""
    found, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor
    return found


@torch.no_grad()
def _enliven(model: Any) -> None:
    """Gives a model weights that are large enough for each token to be told from another in its logits."""
    parameters = dict(model.named_parameters())
    for name, tensor in _floats(model).items():
        if name in parameters and tensor.dim() > 1 and not _is_conv_state(name):
            tensor.normal_(0.0, 0.2)
        elif name in parameters:
            tensor.add_(0.1 * torch.randn_like(tensor))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in parameters.values()):
        raise ValueError("a parameter is not finite")


def _is_conv_state(name: str) -> bool:
    """Whether a matrix holds the logarithms of decays, which do not bear noise."""
    return name.rpartition(".")[2] in ("A_log", "dt_bias", "A")


@torch.no_grad()
def _disturb(model: Any) -> None:
    """Adds noise to every floating-point tensor, saved buffers included.

    Variances stay positive, the zeros of buffers that are masks stay zeros, and so do marks of -1, which
    transformers puts back when it loads them.
    """
    buffers = dict(model.named_buffers())
    for name, tensor in _floats(model).items():
        fixed = ~torch.isfinite(tensor)
        if name in buffers:
            fixed |= tensor == (0 if tensor.dim() > 1 else -1)
        noise = 0.05 * torch.randn_like(tensor) * (1 + tensor.abs().where(~fixed, 0.0)).clamp(max=2.0)
        tensor.copy_(torch.where(fixed, tensor, tensor + torch.where(tensor > 0, noise.abs(), noise)))


def prompt() -> torch.Tensor:
    """Token ids of a short text, (1, 14)."""
    return 4 + (torch.arange(14)[None] * 7 + 3) % (len(_WORDS) - 4)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """A model's logits for a text; what an encoder-decoder says of the text's repetition."""
    takes = inspect.signature(model.forward).parameters
    more: dict[str, Any] = {}
    if "decoder_input_ids" in takes and model.config.is_encoder_decoder:
        more["decoder_input_ids"] = ids
    if "use_cache" in takes:
        more["use_cache"] = False
    torch.manual_seed(0)  # a model of diffusion begins with noise
    result: torch.Tensor = model(input_ids=ids, **more).logits
    return result


def check_alive(model: Any) -> None:
    """Checks that logits are finite and tell tokens, and texts, apart.

    Raises:
        ValueError: they do not.
    """
    ids = prompt()
    one, other = logits(model, ids), logits(model, torch.where(torch.arange(14) == 2, ids[0, 3], ids))
    if not bool(torch.isfinite(one).all()):
        raise ValueError("logits are not finite")
    if float(one.std(-1).min()) < 1e-3 or torch.equal(one[:, 3:], other[:, 3:]):
        raise ValueError(f"logits are dead: spread {float(one.std(-1).min()):.1e}")


assert len(_WORDS) < FIRST_ID
