"""What several methods compute alike for one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.merging.kernels import masks
from evomerge.merging.kernels.tables import POINTS
from evomerge.merging.methods import ByRow, Scalars, TensorInputs


def random_drop(tensor: TensorInputs, weights: Sequence[float]) -> Scalars:
    """The scalars of `kernels.drop_random`; with `rescale` what is kept is divided by the density.

    weights: what each expert's kept elements are multiplied by besides.
    """
    densities = tensor.values["density"]
    scale = [1.0 / density if tensor.options["rescale"] else 1.0 for density in densities]
    return {
        "cutoff": [masks.cutoff(density) for density in densities],
        "factor": _product(weights, scale),
        **_salts(tensor),
    }


def _product(weights: Sequence[float], scale: Sequence[float]) -> list[float]:
    return [weight * own for weight, own in zip(weights, scale, strict=True)]


def drop_by_rank(tensor: TensorInputs, weights: Sequence[float]) -> Scalars:
    """The scalars of `kernels.drop_by_rank`, DELLA's drop.

    epsilon is lowered where density ± epsilon would leave [0, 1], so that the mean stays the density. With
    `rescale` what is kept is multiplied by Σ|δ| / Σ p·|δ|, which keeps the tensor's L1 norm in expectation.
    """
    lowest, steepness, scale = [], [], []
    tables = [tensor.table("row_ranks", [expert]) for expert in tensor.experts]
    columns = int(tables[0].columns[0])
    for table, density, epsilon in zip(tables, tensor.values["density"], tensor.values["epsilon"], strict=True):
        reach = min(epsilon, density, 1.0 - density)
        expected = density - reach + 2.0 * reach * float(table.lean[0])
        lowest.append(density - reach)
        steepness.append(0.5 / reach if reach > _FLAT else 0.5 / _FLAT)
        scale.append(1.0 / expected if tensor.options["rescale"] else 1.0)
    return {
        "lowest": lowest,
        "steepness": steepness,
        "factor": _product(weights, scale),
        "half": [0.5 if columns > POINTS else 0.0] * len(tables),
        "exact": [int(columns <= POINTS)] * len(tables),
        "quantiles": ByRow(np.stack([table.values for table in tables])),
        **_salts(tensor),
    }


_FLAT = 1e-30  # an epsilon that makes no difference to any uniform


def _salts(tensor: TensorInputs) -> Scalars:
    salts = [masks.salt(tensor.seed, expert, tensor.name) for expert in tensor.experts]
    return {"salt_1": [first for first, _ in salts], "salt_2": [second for _, second in salts]}


def trimmed(tensor: TensorInputs, weights: Sequence[float]) -> Scalars:
    """The scalars of `kernels.trim`, for the largest `density` of each expert's elements, one at least."""
    found = [
        tensor.table("magnitude", [expert]).largest(density)
        for expert, density in zip(tensor.experts, tensor.values["density"], strict=True)
    ]
    return {"low": [low for low, _ in found], "factor": _restored(tensor, weights, [share for _, share in found])}


def banded(tensor: TensorInputs, weights: Sequence[float], gammas: Sequence[float]) -> Scalars:
    """The scalars of `kernels.band`: each expert's largest `density` once its largest `gamma` are left out."""
    found = [
        tensor.table("magnitude", [expert]).band(density, gamma)
        for expert, density, gamma in zip(tensor.experts, tensor.values["density"], gammas, strict=True)
    ]
    lows, highs, shares = zip(*found, strict=True)
    return {"low": list(lows), "high": list(highs), "factor": _restored(tensor, weights, shares)}


def _restored(tensor: TensorInputs, weights: Sequence[float], shares: Sequence[float]) -> list[float]:
    """The weights; with `rescale`, times what restores the L1 norm of which only these shares are kept."""
    rescale = tensor.options["rescale"]
    return _product(weights, [1.0 / share if rescale and share > 0.0 else 1.0 for share in shares])


def factor(tensor: TensorInputs) -> float:
    """λ, divided by Σ wk with `normalize` (by 1 where the weights add up to 0, as mergekit does)."""
    total = sum(tensor.values["weight"])
    divide = tensor.options["normalize"] and abs(total) >= 1e-8
    return tensor.values["lambda"][0] / (total if divide else 1.0)


def scaled_weights(tensor: TensorInputs) -> list[float]:
    """The weights with `factor` in them, for methods that add up."""
    common = factor(tensor)
    return [common * weight for weight in tensor.values["weight"]]


def arc(share: np.ndarray | float, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of spherical interpolation (Shoemake 1985, §3.3), and plain ones where vectors are parallel.

    Args:
        share: of the second vector.
        cosine: of the angle between the vectors, any shape.
    """
    sine_squared = 1.0 - np.square(np.clip(cosine, -1.0, 1.0))
    parallel = sine_squared <= 1e-12
    angle = np.arccos(np.where(parallel, 0.0, np.clip(cosine, -1.0, 1.0)))
    sine = np.sin(angle)
    first = np.where(parallel, 1.0 - share, np.sin((1.0 - share) * angle) / sine)
    second = np.where(parallel, share, np.sin(share * angle) / sine)
    return first, second


def cosines(dots: np.ndarray) -> np.ndarray:
    """Cosines from dot products (..., K, K); 0 where a vector is zero, as mergekit has it."""
    norms = np.sqrt(np.maximum(np.einsum("...ii->...i", dots), 0.0))
    product = norms[..., :, None] * norms[..., None, :]
    return np.where(product > 0.0, dots / np.where(product > 0.0, product, 1.0), 0.0)
