"""The weights of methods that add task vectors up, with λ and the normalization in them."""

from __future__ import annotations

from evomerge.merging.methods import TensorInputs


def scaled_weights(tensor: TensorInputs) -> list[float]:
    """λ·wk of each expert; with `normalize` divided by Σ wk, or by 1 where that is 0, as in mergekit."""
    total = sum(tensor.values["weight"])
    divide = tensor.options["normalize"] and abs(total) >= 1e-8
    factor = tensor.values["lambda"][0] / (total if divide else 1.0)
    return [factor * weight for weight in tensor.values["weight"]]
