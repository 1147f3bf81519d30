"""What a LoRA adapter's configuration says, and which configurations can be folded into a base.

What is not understood is refused: an adapter folded wrongly would look like a bad expert.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import CheckpointError

CONFIG = "adapter_config.json"

# The keys of the configuration that decide the scale.
READ = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"}
)

# The keys that change no result: what they say shows in the tensors, or matters to training alone, or tells where
# the adapter came from.
MOOT = frozenset(
    {
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
)

# The starts of training that leave the base as it is; the others change it.
_SOUND_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Settings:
    """What an adapter's configuration says of ranks and scales.

    Attributes:
        r, alpha: the rank and the scale's numerator of modules that no pattern names.
        rslora: whether the scale is alpha / √r instead of alpha / r.
        ranks, alphas: pattern of modules' names -> the rank, or alpha, of these modules.
    """

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
        """All settings as plain values; the result depends on no others."""
        return asdict(self)


def _pattern(patterns: Mapping[str, Any], module: str) -> str:
    """The first of peft's patterns that a module's name ends in; the module's name if there is none."""
    return next((key for key in patterns if re.fullmatch(rf"(.*\.)?({key})", module)), module)


def read(folder: Path, where: str) -> Settings:
    """An adapter's settings.

    Raises:
        CheckpointError: the file is damaged, or asks for something that cannot be folded into a base.
    """
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        settings = _settings(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        if isinstance(error, KeyError) and data.get("peft_type", "LORA") != "LORA":
            raise _refusal(where, path, "peft_type", data["peft_type"]) from error
        raise CheckpointError(f"{where}: {path} is damaged ({error!r}); copy the adapter again") from error
    if data.get("peft_type") != "LORA":
        raise _refusal(where, path, "peft_type", data.get("peft_type"))
    if data.get("init_lora_weights") not in _SOUND_STARTS:
        raise _refusal(where, path, "init_lora_weights", data["init_lora_weights"])
    for key, value in data.items():
        if key not in READ | MOOT and value not in (None, False, {}, []):
            raise _refusal(where, path, key, value)
    return settings


def _settings(data: Mapping[str, Any]) -> Settings:
    """The settings in a configuration's content. Raises whatever damaged content makes Python raise."""
    settings = Settings(
        r=int(data["r"]),
        alpha=float(data["lora_alpha"]),
        rslora=bool(data.get("use_rslora")),
        ranks={str(key): int(value) for key, value in (data.get("rank_pattern") or {}).items()},
        alphas={str(key): float(value) for key, value in (data.get("alpha_pattern") or {}).items()},
    )
    for pattern in (*settings.ranks, *settings.alphas):
        re.compile(pattern)
    return settings


def _refusal(where: str, path: Path, key: str, value: Any) -> CheckpointError:
    shown = value if isinstance(value, str | bool | int) else "so"
    return CheckpointError(
        f"{where}: {path} has {key}: {shown}, which cannot be folded into the base here; merge it with peft "
        "(merge_and_unload) and give that folder"
    )
