"""Longer texts than the model was trained on: its rotary position embedding is stretched.

A rotation by position m in dimension i is m θ^(-2i/d); every method changes these frequencies so that the positions
of a text `factor` times as long fall among those that the model knows.

- linear: position interpolation, all frequencies divided by the factor (Chen et al. 2023, arXiv 2306.15595,
  section 2.3). Flat at any length, but it blurs neighbouring positions: for models that are trained afterwards.
- ntk: a larger base θ' = θ s^(d/(d-2)) (bloc97 2023, "NTK-aware scaled RoPE"; Peng et al. 2023, arXiv 2309.00071,
  definition 1). The highest frequency stays, the lowest is divided by the factor. Every reader of a checkpoint
  knows it.
- yarn: frequencies that turn more than `beta_fast` times in the original length stay, those that turn less than
  `beta_slow` times are divided by the factor, and a ramp lies between (ibid., definition 2); the attention is
  sharpened, cosines and sines by 0.1 ln s + 1 (definition 3). The default.
- longrope: one factor for each dimension, non-decreasing (Ding et al. 2024, arXiv 2402.13753), here a monotone
  curve through a few `knots`, and the same for short texts and long ones.
- llama3: as yarn, by wavelength and without temperature (Llama 3.1; Dubey et al. 2024, arXiv 2407.21783).

There is no `dynamic`: it keeps state between forwards, so that a score would depend on what was scored before.

The factor counts from the model's own length; from the length it was extended from if it is extended already, for a
new rope takes the place of the old one. With factor 1 the rope is left as it is.
"""

from __future__ import annotations

import copy
import math
import time
from contextlib import ExitStack
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from transformers import AutoModelForCausalLM

from evomerge.errors import CandidateError, suggest
from evomerge.files.schema import Strict
from evomerge.models import rope
from evomerge.operators import Applied, Context, Cost
from evomerge.recipes.recipe import Corpus

TRAINING = False

Method = Literal["linear", "ntk", "yarn", "longrope", "llama3"]

BETA_FAST, BETA_SLOW = 32.0, 1.0  # YaRN's choice for Llama (section 3.2)


LOW_FREQUENCY, HIGH_FREQUENCY = 1.0, 4.0  # Llama 3.1's

_OWN = {
    "theta_scale": "ntk",
    "beta_fast": "yarn",
    "beta_slow": "yarn",
    "truncate": "yarn",
    "knots": "longrope",
    "low_freq_factor": "llama3",
    "high_freq_factor": "llama3",
}


class Options(Strict):
    """factor, or target_length in tokens: how long. The length is rounded to whole tokens, and the factor follows.
    attention_scale: times the method's own attention factor. It is put into the weights that make the queries, for
    some readers of a checkpoint drop an attention factor that is written in its config.

    What belongs to another method must be as it is by default.

    yarn: beta_fast, beta_slow: turns in the original length. Crossed values change places, so that a search may
    propose any two.
    truncate: whether the ramp's ends are rounded outwards to whole dimensions, as readers of a checkpoint do who
    are not told otherwise, and llama.cpp always. A search over the betas then sits on plateaus: give false with it,
    except where a model has several ropes, for there transformers always truncates.

    ntk: theta_scale: takes the place of s^(d/(d-2)).

    longrope: knots: increments of the logarithm of the dimensions' factors, from the highest frequency to the
    lowest, at places evenly spaced, as parts of ln(factor): where they sum to 1 the factor itself is reached.
    YaRN's own factors if not given; `yarn_knots` says which knots come near them.

    llama3: low_freq_factor, high_freq_factor: turns in the original length; they may cross too.
    """

    method: Method = "yarn"
    factor: float | None = Field(default=None, ge=1.0, le=1024.0)
    target_length: float | None = Field(default=None, ge=1.0)
    attention_scale: float = Field(default=1.0, ge=0.25, le=4.0)
    theta_scale: float | None = Field(default=None, ge=1.0, le=1e6)
    beta_fast: float = Field(default=BETA_FAST, ge=0.1, le=1024.0)
    beta_slow: float = Field(default=BETA_SLOW, ge=0.1, le=1024.0)
    truncate: bool = True
    knots: tuple[Annotated[float, Field(ge=0.0, le=4.0)], ...] | None = Field(
        default=None, min_length=2, max_length=8
    )
    low_freq_factor: float = Field(default=LOW_FREQUENCY, ge=0.1, le=1024.0)
    high_freq_factor: float = Field(default=HIGH_FREQUENCY, ge=0.1, le=1024.0)

    @field_validator("method", mode="before")
    @classmethod
    def _known(cls, method: Any) -> Any:
        if method == "dynamic":
            raise ValueError(
                "dynamic keeps state between forwards, so that a score would depend on what was scored before; "
                "use ntk, which changes the base once"
            )
        if method not in get_args(Method):
            raise ValueError(f"unknown method {method!r}.{suggest(str(method), get_args(Method))}")
        return method

    @model_validator(mode="after")
    def _consistent(self) -> Options:
        faults = [
            f"{name}: belongs to {owner}, but the method is {self.method}; remove it"
            for name, owner in _OWN.items()
            if self.method != owner and getattr(self, name) != type(self).model_fields[name].default
        ]
        if (self.factor is None) == (self.target_length is None):
            faults.append("factor: give either a factor or a target_length")
        if faults:
            raise ValueError("\n".join(faults))
        return self


# --- how long ----------------------------------------------------------------------------------------------


def _lengths(options: Options, config: Any) -> tuple[int, int]:
    """The original length and the new one, in tokens."""
    original = rope.original_length(config)
    wanted = options.target_length if options.factor is None else options.factor * original
    assert wanted is not None
    return original, round(wanted)


def _leaves_rope(options: Options, lengths: tuple[int, int]) -> bool:
    return lengths[0] == lengths[1] and (options.theta_scale or 1.0) == 1.0


def reach(options: Options, config: Any) -> int | None:
    """The new length."""
    original, length = _lengths(options, config)
    return None if length == original else length


# --- the parameters ----------------------------------------------------------------------------------------


def rope_parameters(options: Options, config: Any, dimension: int) -> dict[str, Any]:
    """What `config.rope_parameters` is to be.

    The factor is the ratio of the two lengths exactly, as transformers, which compares them, expects.

    Args:
        dimension: how many dimensions of a head are rotated.
    """
    original, length = _lengths(options, config)
    factor = length / original
    rest = {name: value for name, value in rope.parameters(config).items() if name not in rope.SCALING}
    theta = rest["rope_theta"]
    stretched: dict[str, Any] = {"factor": factor}
    if options.method == "ntk":
        scale = options.theta_scale or factor ** (dimension / (dimension - 2))
        return {**rest, "rope_type": "default", "rope_theta": theta * scale}
    if options.method == "linear":
        return {**rest, "rope_type": "linear", **stretched}
    stretched["original_max_position_embeddings"] = original
    if options.method == "yarn":
        slow, fast = _ordered(options.beta_slow, options.beta_fast)
        stretched |= {"beta_fast": fast, "beta_slow": slow, "truncate": options.truncate}
    elif options.method == "llama3":
        low, high = _ordered(options.low_freq_factor, options.high_freq_factor)
        stretched |= {"low_freq_factor": low, "high_freq_factor": high}
    else:
        parts = _yarn_parts(factor, original, theta, dimension)
        if options.knots is not None:
            parts = curve(options.knots, dimension // 2)
        factors = [float(value) for value in factor**parts]
        stretched |= {"short_factor": factors, "long_factor": list(factors)}
    return {**rest, "rope_type": options.method, **stretched}


def _ordered(first: float, second: float) -> tuple[float, float]:
    return min(first, second), max(first, second)


def curve(knots: tuple[float, ...], count: int) -> np.ndarray:
    """Logarithms of the dimensions' factors, as parts of ln(factor): float64 (count,), non-decreasing.

    Straight between the knots' sums, which never bends back as a smooth curve may.
    """
    parts: np.ndarray = np.interp(np.linspace(0, len(knots) - 1, count), np.arange(len(knots)), np.cumsum(knots))
    return parts


def ramp(slow: float, fast: float, original: int, theta: float, dimension: int) -> np.ndarray:
    """YaRN's share of interpolation in each dimension: float64 (dimension / 2,), from 0 to 1 (definition 2).

    As in transformers with `truncate: false`: straight in the dimension's number, between those that turn `fast`
    and `slow` times in the original length.
    """
    turning = [
        dimension * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow)
    ]
    low, high = max(turning[0], 0.0), min(turning[1], dimension - 1.0)
    high = high if high > low else low + 0.001
    share: np.ndarray = np.clip((np.arange(dimension // 2) - low) / (high - low), 0.0, 1.0)
    return share


def _yarn_parts(factor: float, original: int, theta: float, dimension: int) -> np.ndarray:
    """Logarithms of YaRN's factors, 1 / (1 - r + r/s), as parts of ln(factor)."""
    share = ramp(BETA_SLOW, BETA_FAST, original, theta, dimension)
    return share if factor == 1.0 else -np.log1p(share / factor - share) / math.log(factor)


def yarn_knots(options: Options, config: Any, dimension: int, count: int) -> tuple[float, ...]:
    """The knots that come nearest to YaRN's factors: where a search over `count` knots may start."""
    original, length = _lengths(options, config)
    parts = _yarn_parts(length / original, original, rope.parameters(config)["rope_theta"], dimension)
    at_knots = np.interp(np.linspace(0, dimension // 2 - 1, count), np.arange(dimension // 2), parts)
    return tuple(float(step) for step in np.diff(at_knots, prepend=0.0))


# --- the contract ------------------------------------------------------------------------------------------


def check(options: Options, config: Any) -> list[str]:
    """Tries it on a model without weights."""
    try:
        original, length = _lengths(options, config)
        nested = rope.layer_type(config) is not None
    except CandidateError as error:
        return [f"method: {error}"]
    present = config.get_text_config().max_position_embeddings
    faults = []
    if length < present:
        name = "target_length" if options.factor is None else "factor"
        least = f"{present} tokens" if options.factor is None else f"{present / original:g}"
        counted = "" if original == present else f", extended from {original}, from which the factor counts"
        faults.append(f"{name}: the model's length is {present} tokens already{counted}; give at least {least}")
    if nested and not options.truncate:
        faults.append("truncate: transformers always truncates where a model has several ropes; remove it")
    if faults:
        return faults
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    faults = _fault("method", lambda: _stretch(model, options))
    if options.attention_scale != 1.0:
        faults += _fault("attention_scale", lambda: rope.scale_queries(model, options.attention_scale**2))
    return faults


def _fault(option: str, change: Any) -> list[str]:
    try:
        change()
    except CandidateError as error:
        return [f"{option}: {error}"]
    return []


def estimate(options: Options, parameters: int) -> Cost:
    """Milliseconds; with an attention scale, also a copy of the queries' projections, a twelfth of the weights."""
    if options.attention_scale == 1.0:
        return Cost(seconds=0.01)
    return Cost(seconds=0.01 + 1e-10 * parameters, peak_bytes=parameters // 3)


def teachers(options: Options) -> set[str]:
    """No models: nothing is learned."""
    return set()


def corpora(options: Options) -> dict[str, Corpus]:
    """No files: nothing is learned."""
    return {}


def apply(model: Any, options: Options, context: Context) -> Applied:
    """Stretches the rope, sets the length, and scales the queries."""
    began = time.perf_counter()
    config = model.config.get_text_config()
    original, length = _lengths(options, config)
    with ExitStack() as done:
        if not _leaves_rope(options, (original, length)):
            done.callback(_stretch(model, options))
        if options.attention_scale != 1.0:
            done.callback(rope.scale_queries(model, options.attention_scale**2))
        undo = done.pop_all().close
    now = rope.parameters(config)
    factor = rope.attention_factor(model)
    record = {
        "method": options.method,
        "factor": length / original,
        "original_length": original,
        "length": length,
        "theta": now["rope_theta"],
        "attention_factor": factor,
        "wanted_attention_factor": factor * options.attention_scale,
        "rope_parameters": now,
    }
    return Applied(undo, record, Cost(seconds=time.perf_counter() - began))


def _stretch(model: Any, options: Options) -> Any:
    config = model.config.get_text_config()
    return rope.set_rope(
        model,
        rope_parameters(options, config, rope.dimension(model)),
        layer_type=rope.layer_type(config),
        max_position_embeddings=_lengths(options, config)[1],
    )
