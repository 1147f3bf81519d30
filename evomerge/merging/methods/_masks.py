"""The scalars of the steps that drop elements; several methods share each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.merging.kernels import masks
from evomerge.merging.methods import ByRow, Scalars, TensorInputs
from evomerge.recipes.parameters import Parameter

EPSILON = Parameter("epsilon", per_expert=True, low=0.0, high=0.5, default=0.15, selects=True)
GAMMA = Parameter("gamma", per_expert=True, low=0.0, high=1.0, default=0.01, selects=True)


def random_drop(tensor: TensorInputs, weights: Sequence[float]) -> Scalars:
    """The scalars of `merging.kernels.steps.drop_random`. With `rescale` kept elements are divided by the density.

    weights: what each expert's kept elements are multiplied by besides.
    """
    densities = tensor.values["density"]
    scale = [1.0 / density if tensor.options["rescale"] else 1.0 for density in densities]
    return {
        "cutoff": [masks.cutoff(density) for density in densities],
        "factor": _product(weights, scale),
        **_salts(tensor),
    }


def drop_by_rank(tensor: TensorInputs, weights: Sequence[float]) -> Scalars:
    """The scalars of `merging.kernels.steps.drop_by_rank`, DELLA's drop.

    epsilon is lowered where density ± epsilon would leave [0, 1], so that the mean probability stays the density.
    With `rescale` kept elements are multiplied by Σ|δ| / Σ p·|δ|, which keeps the tensor's L1 norm in expectation.

    weights: what each expert's kept elements are multiplied by besides.
    """
    lowest, steepness, scale = [], [], []
    tables = [tensor.table("row_ranks", [expert]) for expert in tensor.experts]
    for table, density, epsilon in zip(tables, tensor.values["density"], tensor.values["epsilon"], strict=True):
        reach = min(epsilon, density, 1.0 - density)
        expected = density - reach + 2.0 * reach * float(table.lean[0])
        lowest.append(density - reach)
        steepness.append(0.5 / reach if reach > _FLAT else 0.5 / _FLAT)
        scale.append(1.0 / expected if tensor.options["rescale"] else 1.0)
    complete = tables[0].complete  # all experts' rows have one length
    return {
        "lowest": lowest,
        "steepness": steepness,
        "factor": _product(weights, scale),
        "half": [0.0 if complete else 0.5] * len(tables),
        "exact": [int(complete)] * len(tables),
        "quantiles": ByRow(np.stack([table.values for table in tables])),
        **_salts(tensor),
    }


_FLAT = 1e-30  # an epsilon that makes no difference to any uniform


def _salts(tensor: TensorInputs) -> Scalars:
    salts = [masks.salt(tensor.seed, expert, tensor.name) for expert in tensor.experts]
    return {"salt_1": [first for first, _ in salts], "salt_2": [second for _, second in salts]}


def trimmed(tensor: TensorInputs, weights: Sequence[float]) -> Scalars:
    """The scalars of `merging.kernels.steps.trim`: each expert keeps its largest `density` of elements.

    weights: what each expert's kept elements are multiplied by besides.
    """
    cuts = [
        tensor.table("magnitude", [expert]).largest(density)
        for expert, density in zip(tensor.experts, tensor.values["density"], strict=True)
    ]
    lows, shares = zip(*cuts, strict=True)
    return {"low": list(lows), "factor": _restored(tensor, weights, shares)}


def banded(tensor: TensorInputs, weights: Sequence[float], gammas: Sequence[float]) -> Scalars:
    """The scalars of `merging.kernels.steps.band`: each expert keeps its largest `density` of elements once its
    largest `gamma` are left out.

    weights: what each expert's kept elements are multiplied by besides.
    """
    cuts = [
        tensor.table("magnitude", [expert]).band(density, gamma)
        for expert, density, gamma in zip(tensor.experts, tensor.values["density"], gammas, strict=True)
    ]
    lows, highs, shares = zip(*cuts, strict=True)
    return {"low": list(lows), "high": list(highs), "factor": _restored(tensor, weights, shares)}


def _restored(tensor: TensorInputs, weights: Sequence[float], shares: Sequence[float]) -> list[float]:
    """The weights; with `rescale`, each divided by the share of its expert's L1 norm that is kept."""
    rescale = tensor.options["rescale"]
    return _product(weights, [1.0 / share if rescale and share > 0.0 else 1.0 for share in shares])


def _product(weights: Sequence[float], scale: Sequence[float]) -> list[float]:
    return [weight * own for weight, own in zip(weights, scale, strict=True)]
