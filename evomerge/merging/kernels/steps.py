"""The steps that merge methods are written in: task vectors, sums, masks, trims, elections.

A step is written in its tensors' own methods alone (`x.where(condition, 0.0)` is torch.where(condition, x, 0.0)),
so that to import a merge method does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.merging.kernels import masks

if TYPE_CHECKING:
    from torch import Tensor


def task_vectors(base: Tensor, experts: Sequence[Tensor]) -> list[Tensor]:
    """The task vectors δk = θk − θ0 (Ilharco et al. 2023, arXiv 2212.04089, §2)."""
    return [expert - base for expert in experts]


def total(tensors: Sequence[Tensor]) -> Tensor:
    """Σk xk, summed in the order of the experts."""
    summed = tensors[0]
    for tensor in tensors[1:]:
        summed = summed + tensor
    return summed


def weighted_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σk wk·xk, summed in the order of the experts. weights: float32 (K,)."""
    return total([tensor * weights[k] for k, tensor in enumerate(tensors)])


def variance(deltas: Sequence[Tensor]) -> Tensor:
    """The population variance Var_k δk of each element. A table and a pass get the same bits: the order of the
    operations is fixed here."""
    mean = total(deltas) / len(deltas)
    return total([(delta - mean) * (delta - mean) for delta in deltas]) / len(deltas)


def drop_random(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """DARE's drop (Yu et al. 2024, arXiv 2311.03099, eq. 2): of each δk it keeps the elements whose hash is at most
    the cutoff, multiplied by the factor, and makes the others 0.

    Args:
        s: element int32 (n,); cutoff, salt_1, salt_2 int32 (K,); factor float32 (K,).
    """
    kept = []
    for k, delta in enumerate(deltas):
        keep = masks.bits(s["element"], s["salt_1"][k], s["salt_2"][k]) <= s["cutoff"][k]
        kept.append((delta * s["factor"][k]).where(keep, 0.0))
    return kept


def drop_by_rank(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """DELLA's MAGPRUNE (Deep et al. 2024, arXiv 2406.11617, §3): of each δk it keeps an element with probability
    p = lowest + r/steepness, multiplied by the factor. r in [0, 1] is the element's rank by magnitude in its row.

    An element whose uniform is u is kept if u < p, that is if r > q = (u − lowest)·steepness, that is if its
    magnitude is above the row's quantile at q. Magnitudes that tie with each other are kept or dropped together;
    the hash's last bit decides whether they take their highest rank or their lowest, so that they have their mean
    rank on average.

    Args:
        s: element int32 (rows, columns); salt_1, salt_2, exact int32 (K,); lowest, steepness, factor, half float32
            (K,); quantiles float32 (K, rows, points). Where the points are all ranks of a row, exact is 1 and half
            is 0. Else exact is 0 and half is 1/2, and an element between two points counts as half-way.
    """
    kept = []
    points = s["quantiles"].shape[2]
    for k, delta in enumerate(deltas):
        bits = masks.bits(s["element"], s["salt_1"][k], s["salt_2"][k])
        uniform = ((bits >> 8).float() + 2.0**23) * 2.0**-24  # exact, and below 1
        above = uniform - s["lowest"][k]
        quantile = (above * s["steepness"][k]).where(above >= 0.0, -1.0).clamp(max=2.0)
        place = (quantile.clamp(min=0.0, max=1.0) * (points - 1) + s["half"][k]).int()
        highest = bits & 1
        place = (place + highest * s["exact"][k]).clamp(max=points - 1)
        threshold = s["quantiles"][k].gather(1, place.long())
        size = delta.abs()
        passes = (size > threshold).where(highest == 0, size >= threshold)
        keep = (quantile < 0.0) | ((quantile < 1.0) & passes)
        kept.append((delta * s["factor"][k]).where(keep, 0.0))
    return kept


def trim(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """TIES' trim (Yadav et al. 2023, arXiv 2306.01708, §3.1): of each δk it keeps the elements of magnitude `low`
    and more, multiplied by the factor.

    Args:
        s: low, factor float32 (K,).
    """
    return [(delta * s["factor"][k]).where(delta.abs() >= s["low"][k], 0.0) for k, delta in enumerate(deltas)]


def band(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """Breadcrumbs' mask (Davari & Belilovsky 2024, arXiv 2312.06795, §3): of each δk it keeps the elements of
    magnitude `low` to `high`, multiplied by the factor.

    Args:
        s: low, high, factor float32 (K,).
    """
    kept = trim(deltas, s)
    return [kept[k].where(delta.abs() <= s["high"][k], 0.0) for k, delta in enumerate(deltas)]


def elect(terms: Sequence[Tensor], weights: Tensor, *, normalize: bool, vote: Tensor | None = None) -> Tensor:
    """TIES' sign election and disjoint merge (Yadav et al. 2023, arXiv 2306.01708, §3.2-3.3), weighted as mergekit
    weights it.

    The sign that `vote` has is elected for each element, + where the vote is 0. Terms of the other sign
    are left out.

    Args:
        terms: wk·δk of each expert; dropped elements are 0.
        weights: wk, float32 (K,).
        normalize: divide the sum by the weights of the terms that took part, or by 1 where these add up to 0.
        vote: the sum of the terms if None.
    """
    positive = (total(terms) if vote is None else vote) >= 0
    if not normalize:
        up, down = total([term.relu() for term in terms]), total([(-term).relu() for term in terms])
        return up.where(positive, -down)
    agrees = [(term > 0).where(positive, term < 0) for term in terms]
    merged = total([term.where(agree, 0.0) for agree, term in zip(agrees, terms, strict=True)])
    divisor = total([weights[k].where(agree, 0.0) for k, agree in enumerate(agrees)])
    return merged / divisor.where(divisor != 0, 1.0)
