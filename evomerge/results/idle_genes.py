"""Genes without an effect on the fitness, which the search could do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evomerge.results.generations import generations_of, values_of
from evomerge.searching.spaces.genes import Coordinate
from evomerge.studies.trials import Trial

_OVERALL = 1e-3  # if all genes together have a greater p than this, nothing is said of any of them
_ABSENT = 0.1  # a gene with a smaller p than this may have an effect
# The power of the test must be so high for an effect of this share of what genes of its size explain on average.
_POWER, _SHARE = 0.99, 0.25


@dataclass(frozen=True)
class _Effects:
    """A regression of values on genes.

    Attributes:
        overall: the p-value of all genes together.
        genes: gene -> the p-value of its own effect, and the power with which its test sees an effect.
    """

    overall: float
    genes: dict[str, tuple[float, float]]


def idle_genes(trials: Sequence[Trial], coordinates: Sequence[Coordinate], pareto: bool) -> list[str]:
    """A warning for each gene of which no effect is seen, although there was enough to see one.

    The values are regressed on each coordinate and its square, and the coordinates of each gene are tested together
    by an F-test. The regression compares candidates within generations, so that neither the progress of the search
    nor the documents of a generation pass for an effect. A gene is named if the genes together have an effect, its
    own effect has p > 0.1, and the test has a power of 0.99 for a quarter of the effect that genes of its size have
    on average.

    Args:
        coordinates: the coordinates of the trials' genomes.
        pareto: whether each task is an objective of its own; then a gene must be idle in all of them.
    """
    groups = [group for group in generations_of(trials) if len(group) > 3]
    genes = list(dict.fromkeys(c.gene for c in coordinates if _width(c)))
    if len(genes) < 2 or not groups:
        return []
    columns = np.concatenate([_columns(group, coordinates) for group in groups])
    owners = [c.gene for c in coordinates for _ in range(_width(c))]
    free = len(columns) - len(groups) - columns.shape[1]
    if free < max(30, columns.shape[1]):
        return []
    trials = [trial for group in groups for trial in group]
    targets = np.array([list(t.climbed.values()) for t in trials]).T if pareto else values_of(trials)[None]
    sizes = [len(group) for group in groups]
    effects = [_effects(_centred(target, sizes), columns, owners, free) for target in targets]
    if not all(effect.overall < _OVERALL for effect in effects):
        return []
    sentences = []
    for gene in genes:
        tests = [effect.genes[gene] for effect in effects]
        if all(p > _ABSENT and power >= _POWER for p, power in tests):
            cure = "search with one method" if gene == "method" else "give it under `fixed` and not as a gene"
            p = min(p for p, _ in tests)
            sentences.append(f"no effect was seen of {gene} over {len(columns)} candidates (p = {p:.2f}); {cure}")
    return sentences


def _width(coordinate: Coordinate) -> int:
    """How many columns of the regression a coordinate has, see `_columns`."""
    return len(coordinate.choices) - 1 if coordinate.choices else 2


def _columns(group: Sequence[Trial], coordinates: Sequence[Coordinate]) -> np.ndarray:
    """The columns that a generation's values are regressed on, float64 (candidates, columns), each of mean 0.

    A number gives two columns: its unit coordinate, and the square of that, which sees an optimum in the middle. A
    choice gives an indicator for each category but the first.
    """
    columns: list[np.ndarray] = []
    for c in coordinates:
        if c.choices:
            columns += [np.array([float(t.genome[c.name] == choice) for t in group]) for choice in c.choices[1:]]
            continue
        unit = np.array([c.to_unit(trial.genome[c.name]) for trial in group])
        columns += [unit, unit**2]
    return np.column_stack([column - column.mean() for column in columns])


def _centred(values: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The values, float64 (candidates,), without the means of their generations.

    Args:
        sizes: the number of candidates in each generation.
    """
    return np.concatenate([group - group.mean() for group in np.split(values, np.cumsum(sizes)[:-1])])


def _effects(values: np.ndarray, columns: np.ndarray, owners: Sequence[str], free: int) -> _Effects:
    """The F-tests of all columns together, and of each gene's columns beside the others.

    Args:
        values: float64 (candidates,), without the means of their generations.
        columns: float64 (candidates, columns).
        owners: the gene of each column.
        free: the degrees of freedom of the residual.
    """

    def unexplained(kept: np.ndarray) -> float:
        if not kept.any():
            return float(values @ values)
        coefficients = np.linalg.lstsq(columns[:, kept], values, rcond=None)[0]
        return float(np.square(values - columns[:, kept] @ coefficients).sum())

    whole, width = float(values @ values), len(owners)
    rest = unexplained(np.ones(width, dtype=bool))
    if rest <= 1e-12 * whole:  # nothing varies, or there is no noise to compare with
        return _Effects(1.0, dict.fromkeys(owners, (0.0, 0.0)))
    noise = rest / free
    explained = max(whole - rest - width * noise, 0.0)  # without what chance alone explains
    genes = {}
    for gene in dict.fromkeys(owners):
        own = np.array([owner == gene for owner in owners])
        count = int(own.sum())
        p = stats.f.sf((unexplained(~own) - rest) / count / noise, count, free)
        shift = _SHARE * explained * count / width / noise
        power = stats.ncf.sf(stats.f.isf(_ABSENT, count, free), count, free, shift) if shift else 0.0
        genes[gene] = (float(p), float(power))
    return _Effects(float(stats.f.sf((whole - rest) / width / noise, width, free)), genes)
