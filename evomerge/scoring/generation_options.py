"""Keywords of `model.generate`, and which of them leave an answer the most likely tokens, one by one."""

from __future__ import annotations

import json
from typing import Any

from evomerge.scoring.forward.requests import GenerationRequest

# Keywords that change nothing unless answers are sampled.
_SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"})

# What a model's own generation settings must be for the most likely token to be taken each time.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "guidance_scale": (None, 1.0),
    "penalty_alpha": (None, 0.0),
    **dict.fromkeys(
        (
            "bad_words_ids",
            "sequence_bias",
            "suppress_tokens",
            "begin_suppress_tokens",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "exponential_decay_length_penalty",
            "watermarking_config",
            "stop_strings",
            "max_time",
            "dola_layers",
            "prompt_lookup_num_tokens",
        ),
        (None,),
    ),
}


def is_plain(config: Any) -> bool:
    """Whether a model's generation config takes the most likely token each time, if a request does not sample."""
    return all(getattr(config, name, None) in allowed for name, allowed in _PLAIN.items())


def is_greedy(request: GenerationRequest) -> bool:
    """Whether a request asks for the most likely token each time, if the model's own settings are plain."""
    options = keywords_of(request)
    return options.pop("do_sample", None) is False and options.keys() <= _SAMPLING


def keywords_of(request: GenerationRequest) -> dict[str, Any]:
    """The keywords of `model.generate` that lm-eval's HFLM passes for a request, sampling and temperature set."""
    options: dict[str, Any] = json.loads(request.options)
    options.setdefault("temperature", 0.0)
    if options["temperature"] == 0.0 and options.get("do_sample") is None:
        options["do_sample"] = False
    if options.get("do_sample") is False and options["temperature"] == 0.0:
        del options["temperature"]
    return options
