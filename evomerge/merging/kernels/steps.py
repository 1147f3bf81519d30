"""The steps that merge methods are written in: task vectors, sums, masks, trims, elections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch._inductor
from torch import Tensor

from evomerge.merging.kernels import masks

# --- steps -------------------------------------------------------------------------------------------------


def task_vectors(base: Tensor, experts: Sequence[Tensor]) -> list[Tensor]:
    """δk = θk − θ0 (Ilharco et al. 2023)."""
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


def drop_random(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """DARE's drop (Yu et al. 2024, eq. 2): δk's elements whose hash is within the cutoff, times the factor.

    s: element int32 (n,); cutoff, salt_1, salt_2 int32 (K,); factor float32 (K,).
    """
    kept = []
    for k, delta in enumerate(deltas):
        keep = masks.bits(s["element"], s["salt_1"][k], s["salt_2"][k]) <= s["cutoff"][k]
        kept.append(torch.where(keep, delta * s["factor"][k], 0.0))
    return kept


def drop_by_rank(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """DELLA's MAGPRUNE (Deep et al. 2024, §3): δk's elements, times the factor, each kept with probability
    p = lowest + r/steepness, r in [0, 1] being its rank by magnitude in its row.

    An element whose uniform is u is kept if u < p, that is if r > q = (u - lowest)·steepness: if its magnitude is
    above the row's quantile at q. Of magnitudes that tie, either all of these or none are above; the hash's last
    bit decides whether they take their highest rank or their lowest, so on average their mean rank.

    s: element int32 (rows, columns); salt_1, salt_2, exact int32 (K,); lowest, steepness, factor, half float32
    (K,); quantiles float32 (K, rows, points). exact is 1 and half 0 where all ranks of a row are among its points.
    Else they are 0 and 1/2: an element between two points counts as half-way.
    """
    kept = []
    points = s["quantiles"].shape[2]
    for k, delta in enumerate(deltas):
        bits = masks.bits(s["element"], s["salt_1"][k], s["salt_2"][k])
        uniform = ((bits >> 8).float() + 2.0**23) * 2.0**-24  # exact, and below 1
        above = uniform - s["lowest"][k]
        quantile = torch.where(above < 0.0, -1.0, above * s["steepness"][k]).clamp(max=2.0)
        place = (quantile.clamp(min=0.0, max=1.0) * (points - 1) + s["half"][k]).to(torch.int32)
        highest = bits & 1
        place = (place + highest * s["exact"][k]).clamp(max=points - 1)
        threshold = torch.gather(s["quantiles"][k], 1, place.to(torch.int64))
        size = delta.abs()
        passes = torch.where(highest == 0, size > threshold, size >= threshold)
        keep = (quantile < 0.0) | ((quantile < 1.0) & passes)
        kept.append(torch.where(keep, delta * s["factor"][k], 0.0))
    return kept


def trim(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """TIES' trim (Yadav et al. 2023, §3.1): δk's elements of magnitude `low` and more, times the factor.

    s: low, factor float32 (K,).
    """
    return [torch.where(delta.abs() >= s["low"][k], delta * s["factor"][k], 0.0) for k, delta in enumerate(deltas)]


def band(deltas: Sequence[Tensor], s: Mapping[str, Tensor]) -> list[Tensor]:
    """Breadcrumbs' mask (Davari & Belilovsky 2024, §3): δk's elements of magnitude `low` to `high`, times the
    factor.

    s: low, high, factor float32 (K,).
    """
    kept = trim(deltas, s)
    return [torch.where(delta.abs() <= s["high"][k], kept[k], 0.0) for k, delta in enumerate(deltas)]


def elect(terms: Sequence[Tensor], weights: Tensor, *, normalize: bool, vote: Tensor | None = None) -> Tensor:
    """TIES' sign election and disjoint merge (Yadav et al. 2023, §3.2-3.3), weighted as mergekit does.

    The elected sign is that of `vote`, the sum of the terms by default, + where that is 0. Terms of the other sign
    are left out. With `normalize` the sum is divided by the weights that took part, or by 1 where they add up to 0.

    Args:
        terms: wk·δk of each expert, dropped elements 0.
        weights: wk, float32 (K,).
    """
    positive = (total(terms) if vote is None else vote) >= 0
    if not normalize:
        up, down = total([torch.relu(term) for term in terms]), total([torch.relu(-term) for term in terms])
        return torch.where(positive, up, -down)
    agrees = [torch.where(positive, term > 0, term < 0) for term in terms]
    merged = total([torch.where(agree, term, 0.0) for agree, term in zip(agrees, terms, strict=True)])
    divisor = total([torch.where(agree, weights[k], 0.0) for k, agree in enumerate(agrees)])
    return merged / torch.where(divisor == 0, 1.0, divisor)
