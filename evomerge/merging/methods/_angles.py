"""Angles between vectors from their dot products, and interpolation along the arc between two of them."""

from __future__ import annotations

import math

import numpy as np


def dots_of(gram: np.ndarray, *, task_vectors: bool) -> np.ndarray:
    """The dot products between the experts' task vectors, or between their weights, (..., K, K).

    gram: (..., 1 + K, 1 + K), the dot products over θ0 and the task vectors, as in the tables of
        `merging.kernels.dot_products`.
    """
    deltas: np.ndarray = gram[..., 1:, 1:]
    if task_vectors:
        return deltas
    base, cross = gram[..., :1, :1], gram[..., :1, 1:]
    weights: np.ndarray = deltas + cross + np.swapaxes(cross, -1, -2) + base
    return weights


def cosines(dots: np.ndarray) -> np.ndarray:
    """The cosines of the angles between vectors, (..., K, K); 0 where a vector is zero, as mergekit has it.

    dots: (..., K, K), the vectors' dot products.
    """
    norms = np.sqrt(np.maximum(np.einsum("...ii->...i", dots), 0.0))
    product = norms[..., :, None] * norms[..., None, :]
    return np.where(product > 0.0, dots / np.where(product > 0.0, product, 1.0), 0.0)


def arc(share: np.ndarray | float, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The factors of two vectors in their spherical interpolation (Shoemake 1985, §3.3).

    Where the vectors are parallel, these are the factors of plain interpolation.

    Args:
        share: the share of the second vector.
        cosine: the cosine of the angle between the vectors, of any shape.
    """
    sine_squared = 1.0 - np.square(np.clip(cosine, -1.0, 1.0))
    parallel = sine_squared <= 1e-12
    angle = np.arccos(np.where(parallel, 0.0, np.clip(cosine, -1.0, 1.0)))
    sine = np.sin(angle)
    first = np.where(parallel, 1.0 - share, np.sin((1.0 - share) * angle) / sine)
    second = np.where(parallel, share, np.sin(share * angle) / sine)
    return first, second


def length(vector: np.ndarray, dots: np.ndarray) -> float:
    """The length of a linear combination of vectors.

    Args:
        vector: (K,), the factors of the combination.
        dots: (K, K), the vectors' dot products.
    """
    return math.sqrt(max(float(vector @ dots @ vector), 0.0))
