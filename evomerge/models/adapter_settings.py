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
# the adapter came from. What belongs to one start of training counts only with that start, which
# `init_lora_weights` names.
MOOT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "velora_config",
    }
)

# The keys that make something else than W + s · B A, if they are set -> what they make.
REFUSED = {
    "alora_invocation_tokens": "it acts only after certain tokens, so no weights stand for it",
    "arrow_config": "it chooses among adapters token by token, so no weights stand for it",
    "kasa_config": "it takes parts of the base's weights away",
    "layer_replication": "it repeats layers",
    "megatron_config": "it was trained on parts of matrices",
    "monteclora_config": "it trains a distribution of weights",
    "target_parameters": "it changes parameters that are no linear layer's",
    "trainable_token_indices": "it keeps single rows of the embedding",
    "use_bdlora": "its matrices have blocks",
    "use_dora": "it has a magnitude for each row",
    "use_qalora": "it was trained on groups of inputs",
}

# The starts of training that leave the base as it is; the others change it.
_SOUND_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")


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
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        re.error,
    ) as error:
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
        r=_rank(data["r"]),
        alpha=float(data["lora_alpha"]),
        rslora=bool(data.get("use_rslora")),
        ranks={str(key): _rank(value) for key, value in (data.get("rank_pattern") or {}).items()},
        alphas={str(key): float(value) for key, value in (data.get("alpha_pattern") or {}).items()},
    )
    for pattern in (*settings.ranks, *settings.alphas):
        re.compile(pattern)
    if not all(math.isfinite(alpha) for alpha in (settings.alpha, *settings.alphas.values())):
        raise ValueError("lora_alpha is not finite")
    return settings


def _rank(value: Any) -> int:
    """A rank as the file has it. Raises ValueError for a number that is none."""
    if int(value) != value or value < 1:
        raise ValueError(f"{value} is no rank")
    return int(value)


def _refusal(where: str, path: Path, key: str, value: Any) -> CheckpointError:
    shown = f"{key}: {value}" if isinstance(value, str | bool | int) else key
    reason = f" ({REFUSED[key]})" if key in REFUSED else ""
    return CheckpointError(
        f"{where}: {path} has {shown}, which cannot be folded into the base here{reason}; merge it with peft "
        "(merge_and_unload) and give that folder, or leave it out"
    )
