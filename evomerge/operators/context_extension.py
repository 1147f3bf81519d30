"""Longer texts than the model was trained on: its rotary position embedding is stretched.

At position m, dimension i is rotated by m θ^(-2i/d). Every method changes these frequencies so that the positions
of a text that is s = `factor` times as long fall among those that the model knows.

- linear: position interpolation, all frequencies are divided by s (Chen et al. 2023, arXiv 2306.15595,
  section 2.3). Quality does not fall further with length, but neighbouring positions are blurred: for models that
  are trained afterwards.
- ntk: a larger base θ' = θ s^(d/(d-2)) (bloc97 2023, "NTK-aware scaled RoPE"; Peng et al. 2023, arXiv 2309.00071,
  definition 1). The highest frequency stays, and the lowest is divided by s. Every reader of a checkpoint knows it.
- yarn: frequencies that turn more than `beta_fast` times in the original length stay, those that turn less than
  `beta_slow` times are divided by s, and a ramp lies between (Peng et al., definition 2). The attention is
  sharpened: cosines and sines are multiplied by 0.1 ln s + 1 (definition 3). This is the default.
- longrope: one factor for each dimension, non-decreasing (Ding et al. 2024, arXiv 2402.13753). Here the factors lie
  on a monotone curve through a few `knots`, and are the same for short texts and long ones.
- llama3: as yarn, by wavelength and without the sharpening (Llama 3.1; Dubey et al. 2024, arXiv 2407.21783).

There is no `dynamic`: it keeps state between forwards, so that a score would depend on what was scored before.

The factor counts from the model's own length. If the model was extended before, it counts from the length that it
was extended from, for the new rope takes the place of the old one. With factor 1 the rope is left as it is.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field, field_validator, model_validator

from evomerge.errors import CandidateError, suggest
from evomerge.files.schema import Strict
from evomerge.operators import Applied, Context, Cost, _rope_factors
from evomerge.recipes.recipe import Corpus

TRAINING = False

Method = Literal["linear", "ntk", "yarn", "longrope", "llama3"]

BETA_FAST, BETA_SLOW = 32.0, 1.0  # YaRN's choice for Llama (section 3.2)
LOW_FREQUENCY, HIGH_FREQUENCY = 1.0, 4.0  # Llama 3.1's choice

# Option -> the method that it belongs to.
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
    """How far, and how.

    An option that belongs to another method than the chosen one must have its default.

    Attributes:
        factor: the new length over the original one. The length is rounded to whole tokens, and the factor follows.
        target_length: the new length in tokens, in the place of a factor.
        attention_scale: is multiplied with the method's own attention factor. It is put into the weights that make
            the queries, for some readers of a checkpoint drop an attention factor that its config holds.
        theta_scale: of ntk: takes the place of s^(d/(d-2)).
        beta_fast, beta_slow: of yarn: turns in the original length. Crossed values change places, so that a search
            may propose any two.
        truncate: of yarn: whether the ramp's ends are rounded outwards to whole dimensions. llama.cpp always rounds
            them, and so does every reader that is not told otherwise. A search over the betas then sits on
            plateaus: give false with it, except where a model has several ropes, for there transformers always
            truncates.
        knots: of longrope: increments of the logarithm of the dimensions' factors, from the highest frequency to
            the lowest, at places evenly spaced, as parts of ln(factor): where they sum to 1 the factor itself is
            reached. By default YaRN's own factors; `yarn_knots` says which knots come near them.
        low_freq_factor, high_freq_factor: of llama3: turns in the original length; they may cross too.
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
        """Refuses unknown methods, and says why there is no `dynamic`."""
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
        """Refuses options of other methods, and anything but one of factor and target_length."""
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


def lengths(options: Options, config: Any) -> tuple[int, int]:
    """The original length and the new one, in tokens."""
    from evomerge.models import rope

    original = rope.original_length(config)
    wanted = options.target_length if options.factor is None else options.factor * original
    assert wanted is not None
    return original, round(wanted)


def rope_parameters(options: Options, config: Any, dimension: int) -> dict[str, Any]:
    """The new `config.rope_parameters`.

    The factor is the ratio of the two lengths exactly, as transformers, which compares them, expects.

    Args:
        dimension: how many dimensions of a head are rotated.
    """
    from evomerge.models import rope

    original, length = lengths(options, config)
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
        slow, fast = sorted((options.beta_slow, options.beta_fast))
        stretched |= {"beta_fast": fast, "beta_slow": slow, "truncate": options.truncate}
    elif options.method == "llama3":
        low, high = sorted((options.low_freq_factor, options.high_freq_factor))
        stretched |= {"low_freq_factor": low, "high_freq_factor": high}
    else:
        if options.knots is None:
            parts = _yarn_parts(factor, original, theta, dimension)
        else:
            parts = _rope_factors.curve(options.knots, dimension // 2)
        factors = [float(value) for value in factor**parts]
        stretched |= {"short_factor": factors, "long_factor": list(factors)}
    return {**rest, "rope_type": options.method, **stretched}


def yarn_knots(options: Options, config: Any, dimension: int, count: int) -> tuple[float, ...]:
    """The knots that come nearest to YaRN's factors: where a search over `count` knots may start."""
    from evomerge.models import rope

    original, length = lengths(options, config)
    theta = rope.parameters(config)["rope_theta"]
    return _rope_factors.knots_near(_yarn_parts(length / original, original, theta, dimension), count)


def _yarn_parts(factor: float, original: int, theta: float, dimension: int) -> np.ndarray:
    """The factors of YaRN with its default betas, as parts of ln(factor): float64 (dimension / 2,)."""
    return _rope_factors.yarn(_rope_factors.ramp(BETA_SLOW, BETA_FAST, original, theta, dimension), factor)


def check(options: Options, config: Any) -> list[str]:
    """The faults that show when the rope of a model without weights is stretched."""
    import torch

    from evomerge.models import rope
    from evomerge.models.loading import model_of

    try:
        faults = _length_faults(options, config)
        nested = rope.layer_type(config) is not None
    except CandidateError as error:
        return [f"method: {error}"]
    if nested and not options.truncate:
        faults.append("truncate: transformers always truncates where a model has several ropes; remove it")
    if faults:
        return faults
    with torch.device("meta"):
        model = model_of(copy.deepcopy(config))
    faults = _refusal("method", lambda: _stretch(model, options))
    if options.attention_scale != 1.0:
        faults += _refusal("attention_scale", lambda: rope.scale_queries(model, options.attention_scale**2))
    return faults


def _length_faults(options: Options, config: Any) -> list[str]:
    """What is wrong with the new length: it must not be less than the present one."""
    original, length = lengths(options, config)
    present = config.get_text_config().max_position_embeddings
    if length >= present:
        return []
    name = "target_length" if options.factor is None else "factor"
    least = f"{present} tokens" if options.factor is None else f"{present / original:g}"
    counted = "" if original == present else f", extended from {original}, from which the factor counts"
    return [f"{name}: the model's length is {present} tokens already{counted}; give at least {least}"]


def _refusal(option: str, change: Callable[[], object]) -> list[str]:
    """Tries a change; if it is refused, the reason as the fault of an option."""
    try:
        change()
    except CandidateError as error:
        return [f"{option}: {error}"]
    return []


def reach(options: Options, config: Any) -> int | None:
    """The new length in tokens; None if it is the original one."""
    original, length = lengths(options, config)
    return None if length == original else length


def estimate(options: Options, parameters: int) -> Cost:
    """Milliseconds; with an attention scale, also a copy of the queries' projections, a twelfth of the weights."""
    if options.attention_scale == 1.0:
        return Cost(seconds=0.01)
    return Cost(seconds=0.01 + 1e-10 * parameters, peak_bytes=parameters // 3)


def teachers(options: Options) -> set[str]:
    """No models, for nothing is learned."""
    return set()


def corpora(options: Options) -> dict[str, Corpus]:
    """No files, for nothing is learned."""
    return {}


def apply(model: Any, options: Options, context: Context) -> Applied:
    """Stretches the rope, sets the length, and scales the queries.

    Raises:
        CandidateError: transformers would not load a model with such a rope, or how this model makes its queries
            is not known. The model is as it was.
    """
    from evomerge.models import rope

    began = time.perf_counter()
    config = model.config.get_text_config()
    original, length = lengths(options, config)
    with ExitStack() as done:
        if length != original or (options.theta_scale or 1.0) != 1.0:
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


def _stretch(model: Any, options: Options) -> Callable[[], None]:
    """Changes a model's rope in place, and returns what undoes it."""
    from evomerge.models import rope

    config = model.config.get_text_config()
    return rope.set_rope(
        model,
        rope_parameters(options, config, rope.dimension(model)),
        layer_type=rope.layer_type(config),
        max_position_embeddings=lengths(options, config)[1],
    )
