"""Weights with what they are multiplied and divided by, λ and their sum."""

from __future__ import annotations

from evomerge.errors import CandidateError
from evomerge.merging.methods import TensorInputs

_NOTHING = 1e-8  # a sum that counts as 0; mergekit's value


def scaled_weights(tensor: TensorInputs) -> list[float]:
    """λ·wk of each expert; with `normalize` divided by Σ wk, or by 1 where that is 0, as in mergekit."""
    total = sum(tensor.values["weight"])
    divide = tensor.options["normalize"] and abs(total) >= _NOTHING
    factor = tensor.values["lambda"][0] / (total if divide else 1.0)
    return [factor * weight for weight in tensor.values["weight"]]


def shares(tensor: TensorInputs) -> list[float]:
    """wk of each expert, with `normalize` divided by Σ wk, for a method whose result has no base to fall back on.

    Raises:
        CandidateError: Σ wk is 0, so there is no average to take.
    """
    weights = list(tensor.values["weight"])
    if not tensor.options["normalize"]:
        return weights
    total = sum(weights)
    if abs(total) < _NOTHING:
        raise CandidateError(
            f"{tensor.name}: the weights add up to 0 ({', '.join(f'{one:g}' for one in weights)}), and an average "
            "divides by their sum; give other weights, or normalize: false"
        )
    return [weight / total for weight in weights]
