"""LoRA adapters: what one changes in its base, and the weights that come of it.

    θ = W + s · B A        s = alpha / r, or alpha / √r with use_rslora

(Hu et al. 2021, arXiv:2106.09685, section 4.1; Kalajdzievski 2023, arXiv:2312.03732.) Layers that an adapter holds
whole (`modules_to_save`, trained biases, resized embeddings) take the place of the base's. The result is that of
peft's merge_and_unload, up to rounding, for tied embeddings too, where the head changes with them.

What is not understood is refused: an adapter folded wrongly would look like a bad expert.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import CheckpointError
from evomerge.models.low_rank import fold
from evomerge.models.tensor_names import Shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"}


# What the tensors tell themselves, what matters to training alone, and where things came from.
_MOOT = {
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}


_SOUND_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # the others change the base itself

_PREFIX = "base_model.model."


_PART = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?P<what>\.weight|\.bias)?")


_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")


@dataclass(frozen=True)
class Settings:
    """What an adapter's configuration says of its scale."""

    r: int
    alpha: float
    rslora: bool
    ranks: dict[str, int]
    alphas: dict[str, float]

    def scale(self, module: str, rank: int) -> float:
        """The factor s of a module's B A."""
        alpha = self.alphas.get(_pattern(self.alphas, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def rank(self, module: str) -> int:
        """The rank that a module's A and B should have."""
        return self.ranks.get(_pattern(self.ranks, module), self.r)

    def content(self) -> dict[str, Any]:
        """All that the result depends on, as plain values."""
        return asdict(self)


def _pattern(patterns: Mapping[str, Any], module: str) -> str:
    """The first of peft's patterns that a module's name ends in."""
    return next((key for key in patterns if re.fullmatch(rf"(.*\.)?({key})", module)), module)


def read(folder: Path, where: str) -> Settings:
    """An adapter's settings.

    Raises:
        CheckpointError: the file is damaged, or asks for something that cannot be folded into a base.
    """
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        settings = Settings(
            r=int(data["r"]),
            alpha=float(data["lora_alpha"]),
            rslora=bool(data.get("use_rslora")),
            ranks={str(key): int(value) for key, value in (data.get("rank_pattern") or {}).items()},
            alphas={str(key): float(value) for key, value in (data.get("alpha_pattern") or {}).items()},
        )
        for pattern in (*settings.ranks, *settings.alphas):
            re.compile(pattern)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        if isinstance(error, KeyError) and data.get("peft_type", "LORA") != "LORA":
            raise _refusal(where, path, "peft_type", data["peft_type"]) from error
        raise CheckpointError(f"{where}: {path} is damaged ({error!r}); copy the adapter again") from error
    if data.get("peft_type") != "LORA":
        raise _refusal(where, path, "peft_type", data.get("peft_type"))
    if data.get("init_lora_weights") not in _SOUND_STARTS:
        raise _refusal(where, path, "init_lora_weights", data["init_lora_weights"])
    for key, value in data.items():
        if key not in _READ | _MOOT and value not in (None, False, {}, []):
            raise _refusal(where, path, key, value)
    return settings


def _refusal(where: str, path: Path, key: str, value: Any) -> CheckpointError:
    shown = value if isinstance(value, str | bool | int) else "so"
    return CheckpointError(
        f"{where}: {path} has {key}: {shown}, which cannot be folded into the base here; merge it with peft "
        "(merge_and_unload) and give that folder"
    )


@dataclass
class Change:
    """How an adapter makes one tensor. The fields are names of the adapter's tensors."""

    whole: str | None = None  # takes the base's place
    a: str | None = None
    b: str | None = None
    bias: str | None = None
    transposed: bool = False  # the base keeps this weight as (inputs, outputs)
    scale: float = 1.0


class Adapter:
    """What an adapter does to a base.

    Args:
        tensors: the adapter's own.
        shapes: the base's parameters.
        rows: those with one row a token, which an adapter may hold whole with other rows.
        conv1d: weights that the base keeps as (inputs, outputs), as GPT-2 does.
        tied: names of parameters that are others in the base -> those others.
        path: the adapter's file, for messages.

    Raises:
        CheckpointError: naming the first tensor that is not understood or does not fit.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        settings: Settings,
        shapes: Shapes,
        *,
        rows: Collection[str],
        conv1d: Collection[str],
        tied: Mapping[str, str],
        where: str,
        path: Path,
    ) -> None:
        self.settings = settings
        self._tensors, self._where, self._path = tensors, where, path
        self.changes: dict[str, Change] = {}
        whole = {_WRAPPERS.sub("", key.removeprefix(_PREFIX)): key for key in tensors}
        for name, key in whole.items():
            twin = whole.get(tied.get(name, ""))
            if twin is not None and torch.equal(tensors[key], tensors[twin]):
                continue  # a second copy of a tied tensor
            alone = [other for other, real in tied.items() if real == name and other not in whole]
            if alone and ".base_layer." not in key:
                raise self._fault(key, f"was trained without {alone[0]}, which is the same tensor in the base")
            self._sort(key, shapes, conv1d)
        self.shapes = {name: self._check(name, change, shapes[name], rows) for name, change in self.changes.items()}

    def _sort(self, key: str, shapes: Shapes, conv1d: Collection[str]) -> None:
        """Enters one of the adapter's tensors in the change that it belongs to."""
        name = key.removeprefix(_PREFIX)
        if not self._tensors[key].is_floating_point():
            raise self._fault(key, f"is {self._tensors[key].dtype}; give the float16, bfloat16 or float32 adapter")
        part = _PART.fullmatch(name)
        if part is None and "lora_" in name:
            raise self._fault(key, "is no part of LoRA that is understood here; merge it with peft first")
        if part is None:
            target, field = _WRAPPERS.sub("", name), "whole"
        else:
            module, embedding, what = part["module"], part["kind"], part["what"]
            if bool(embedding) == bool(what) or (what == ".bias" and part["side"] == "A"):
                raise self._fault(key, "is no part of LoRA that is understood here; merge it with peft first")
            target = f"{module}.bias" if what == ".bias" else f"{module}.weight"
            field = "bias" if what == ".bias" else part["side"].lower()
        if target not in shapes:
            raise self._fault(
                key, f"changes {target}, which the base has not as a tensor of its own; give the adapter's own base"
            )
        change = self.changes.setdefault(target, Change())
        if getattr(change, field) is not None:
            raise self._fault(key, f"and {getattr(change, field)} are both for {target}; copy the adapter again")
        setattr(change, field, key)
        if part is not None:
            change.transposed = bool(part["kind"]) or target in conv1d

    def _check(self, name: str, change: Change, shape: tuple[int, ...], rows: Collection[str]) -> tuple[int, ...]:
        """The shape of the tensor that a change makes."""
        if change.whole is not None:
            found = tuple(self._tensors[change.whole].shape)
            if found != shape and not (name in rows and found[1:] == shape[1:]):
                raise self._misfit(change.whole, found, shape)
            shape = found
        module = name.rpartition(".")[0]
        if change.bias is not None:
            found = tuple(self._tensors[change.bias].shape)
            if found != shape:
                raise self._misfit(change.bias, found, shape)
            weight = next((c for n, c in self.changes.items() if n == f"{module}.weight" and c.b), None)
            if weight is None:
                raise self._fault(change.bias, "has no lora_A and lora_B beside it; copy the adapter again")
            change.scale = self.settings.scale(module, self._tensors[weight.b or ""].shape[1])
        if (change.a is None) != (change.b is None):
            raise self._fault(change.a or change.b or "", "lacks its other half; copy the adapter again")
        if change.a is not None and change.b is not None:
            rank = self.settings.rank(module)
            outputs, inputs = (
                (shape[1], shape[0]) if change.transposed and len(shape) == 2 else (shape[0], shape[-1])
            )
            for key, wanted in ((change.a, (rank, inputs)), (change.b, (outputs, rank))):
                if len(shape) != 2 or tuple(self._tensors[key].shape) != wanted:
                    raise self._misfit(key, tuple(self._tensors[key].shape), wanted)
            change.scale = self.settings.scale(module, rank)
        return shape

    def _fault(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {key} in {self._path} {what}")

    def _misfit(self, key: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> CheckpointError:
        return self._fault(
            key, f"has shape {list(found)}, but {list(wanted)} fits the base and {CONFIG}; give its own base"
        )

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The tensor of that name with the adapter folded in, in the base's dtype.

        Args:
            weight: the base's.
        """
        change = self.changes[name]
        if change.whole is not None:
            weight = self._tensors[change.whole].to(weight.dtype)
        if change.bias is not None:
            return (weight.float() + change.scale * self._tensors[change.bias].float()).to(weight.dtype)
        if change.a is None or change.b is None:
            return weight
        a, b = self._tensors[change.a], self._tensors[change.b]
        return fold(weight, a.T, b.T, change.scale) if change.transposed else fold(weight, b, a, change.scale)
