"""The numbers by which a context extension divides the frequencies of a rotary embedding.

A factor is given as a part of ln(s), where s is the factor of the text's length: part 0 leaves a dimension's
frequency as it is, and part 1 divides it by s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BETA_FAST, BETA_SLOW = 32.0, 1.0  # YaRN's choice for Llama (section 3.2)


def curve(knots: Sequence[float], count: int) -> np.ndarray:
    """The parts of ln(s) of `count` dimensions: float64 (count,), non-decreasing.

    They lie on straight lines between the knots' sums, which never bend back as a smooth curve may.

    Args:
        knots: increments, each at least 0, at places evenly spaced over the dimensions.
    """
    parts: np.ndarray = np.interp(np.linspace(0, len(knots) - 1, count), np.arange(len(knots)), np.cumsum(knots))
    return parts


def ramp(slow: float, fast: float, original: int, theta: float, dimension: int) -> np.ndarray:
    """YaRN's share of interpolation in each dimension: float64 (dimension / 2,), from 0 to 1 (definition 2).

    As in transformers with `truncate: false`, the ramp is straight in the dimension's number, between the
    dimensions that turn `fast` and `slow` times in the original length.

    Args:
        original: the original length, in tokens.
        theta: the rope's base.
        dimension: how many dimensions of a head are rotated.
    """
    turning = [
        dimension * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow)
    ]
    low, high = max(turning[0], 0.0), min(turning[1], dimension - 1.0)
    high = high if high > low else low + 0.001
    share: np.ndarray = np.clip((np.arange(dimension // 2) - low) / (high - low), 0.0, 1.0)
    return share


def yarn(factor: float, original: int, theta: float, dimension: int) -> np.ndarray:
    """The logarithms of YaRN's factors, 1 / (1 - r + r/s), as parts of ln(s): float64 (dimension / 2,).

    Args:
        factor: s, at least 1.
    """
    share = ramp(BETA_SLOW, BETA_FAST, original, theta, dimension)
    return share if factor == 1.0 else -np.log1p(share / factor - share) / math.log(factor)


def knots_near(parts: np.ndarray, count: int) -> tuple[float, ...]:
    """The `count` knots whose curve meets the parts at the knots' places."""
    at_knots = np.interp(np.linspace(0, len(parts) - 1, count), np.arange(len(parts)), parts)
    return tuple(float(step) for step in np.diff(at_knots, prepend=0.0))
