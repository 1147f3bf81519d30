"""What several methods compute alike for one tensor."""

from __future__ import annotations

from evomerge import masks
from evomerge.methods import TensorInputs


def scale(tensor: TensorInputs) -> list[float]:
    """What kept elements are multiplied by: 1/density with `rescale`, else 1."""
    rescale = tensor.options["rescale"]
    return [1.0 / density if rescale else 1.0 for density in tensor.values["density"]]


def random_drop(tensor: TensorInputs) -> dict[str, list[float] | list[int]]:
    """The scalars of `kernels.drop_random`."""
    salts = [masks.salt(tensor.seed, expert, tensor.name) for expert in tensor.experts]
    return {
        "cutoff": [masks.cutoff(density) for density in tensor.values["density"]],
        "salt_1": [first for first, _ in salts],
        "salt_2": [second for _, second in salts],
        "scale": scale(tensor),
    }


def factor(tensor: TensorInputs) -> float:
    """λ, divided by Σ wk with `normalize` (by 1 where the weights add up to 0, as mergekit does)."""
    total = sum(tensor.values["weight"])
    divide = tensor.options["normalize"] and abs(total) >= 1e-8
    return tensor.values["lambda"][0] / (total if divide else 1.0)
