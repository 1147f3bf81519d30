"""Warnings that help: what is wrong with a search, before it and after, and what to do about it.

Each is one sentence. They are slow to speak: where the data cannot tell, nothing is said.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from evomerge.searching.spaces.genes import Coordinate
from evomerge.searching.spaces.operator_genes import Operator
from evomerge.searching.spaces.space import SearchSpace
from evomerge.studies.experiment import Budget, SamplerChoice
from evomerge.studies.trials import Trial

PER_DIMENSION = 10  # candidates that a search needs


GENERATIONS = 5  # that a sampler needs to learn from


FAILURES = 0.1  # of the candidates: more are warned of


_LATE = 3  # the end of a search is its last third


_LEAST_RISE = 0.15  # of the whole search's, in its last third: less is no cause to go on


_RECENT = 5  # generations that stand for the end of a search


# --- before ------------------------------------------------------------------------------------------------


def before(coordinates: Sequence[Coordinate], budget: Budget, sampler: SamplerChoice) -> list[str]:
    """What can be said of an experiment before it runs.

    A search needs about ten candidates a dimension, for two reasons. An evolution strategy with the best of step
    sizes comes closer to the optimum of a sphere by a factor exp(-0.2 / d) a candidate at most (Beyer 2001, "The
    Theory of Evolution Strategies", ch. 3), so ten a dimension shorten the distance at best sevenfold; to learn a
    covariance takes far more (Hansen 2016, arXiv 1604.00772). And a Gaussian process needs that many to predict
    well (Loeppky, Sacks and Welch 2009, "Choosing the sample size of a computer experiment", Technometrics 51).
    A gradient tells of all dimensions at once, and needs none of this.

    Only a budget of candidates is judged: how many the others hold is not known before.
    """
    candidates, dimensions = budget.candidates, len(coordinates)
    if candidates is None or not sampler.module.LEARNS:
        return []
    if candidates < PER_DIMENSION * dimensions and not sampler.climbs_gradients:
        return [
            f"{candidates} candidates are few for {dimensions} genes: a search needs about {PER_DIMENSION} a gene "
            f"to learn from; give it {PER_DIMENSION * dimensions}, or take fewer layer groups, modules or axes "
            "under `per`"
        ]
    population = sampler.options.get("population")
    if population and candidates < GENERATIONS * population:
        return [
            f"{candidates} candidates are {candidates / population:.1f} generations of {population}, from which "
            f"{sampler.name} learns little; lower its population, or give it {GENERATIONS * population} candidates"
        ]
    return []


# --- after -------------------------------------------------------------------------------------------------


def after(
    trials: Sequence[Trial],
    coordinates: Sequence[Coordinate],
    *,
    ended: bool = True,
    pareto: bool = False,
    fresh: bool = True,
) -> list[str]:
    """What can be said of a study by its trials.

    Args:
        ended: whether its budget is spent; one that runs is expected to rise.
        pareto: whether each task is an objective of its own, so that the value is not what was climbed.
        fresh: whether each generation that was not scored on all documents had documents of its own.
    """
    found = [*_failing(trials), *_flat(trials, pareto), *_idle(trials, coordinates, pareto)]
    if not pareto:
        found += [*(_rising(trials) if ended else []), *_overfitted(trials, fresh)]
    return found


def coordinates_of(space: SearchSpace, operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Coordinate]:
    """The coordinates of trials' genomes, without opening any model: choices are those that were tried."""
    found = []
    options = {point.name: point for operator in operators for point in operator.coordinates()}
    for name, value in trials[0].genome.items() if trials else ():
        if name in options:
            found.append(options[name])
        elif isinstance(value, str):
            tried = tuple(sorted({str(trial.genome[name]) for trial in trials}))
            found.append(Coordinate(name, 0.0, 1.0, value, False, tried))
        else:
            point = Coordinate(name, 0.0, 1.0, value, False)
            gene = space.numbers[point.gene]
            found.append(replace(point, low=gene.low, high=gene.high, log=gene.scale == "log"))
    return found


def _searched(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The finished search trials of each generation, each recipe once in it."""
    wanted = [trial for trial in trials if trial.role == "search" and trial.value is not None]
    wanted.sort(key=lambda trial: (trial.generation, trial.number))
    groups = (list(group) for _, group in itertools.groupby(wanted, key=lambda trial: trial.generation))
    return [list({trial.recipe: trial for trial in reversed(group)}.values())[::-1] for group in groups]


def _values(trials: Sequence[Trial]) -> np.ndarray:
    return np.array([trial.value for trial in trials], dtype=np.float64)


def _failing(trials: Sequence[Trial]) -> list[str]:
    """More than one candidate in ten failed."""
    reasons = Counter((trial.reason or "no reason").splitlines()[0] for trial in trials if trial.value is None)
    failed = reasons.total()
    if failed < 3 or failed <= FAILURES * len(trials):
        return []
    reason, times = reasons.most_common(1)[0]
    return [
        f"{failed} of {len(trials)} candidates failed, {times} of them with {reason!r}; put that right, or narrow "
        "the bounds of the genes that lead there"
    ]


def _flat(trials: Sequence[Trial], pareto: bool) -> list[str]:
    """In most generations all candidates have the same value: the sampler learns nothing from them."""
    generations = [group for group in _searched(trials) if len(group) > 1]
    flat = [g for g in generations if len({tuple(t.climbed.values()) if pareto else t.value for t in g}) == 1]
    if len(flat) < 3 or 2 * len(flat) <= len(generations):
        return []
    return [
        f"in {len(flat)} of {len(generations)} generations all candidates have the same fitness, so the search has "
        "nothing to climb; give a smooth metric under `climb`, such as probability or loglikelihood, or more "
        "documents"
    ]


# --- genes without effect ----------------------------------------------------------------------------------

_OVERALL = 1e-3  # p of all genes together, above which nothing is said of any


_ABSENT = 0.1  # p of a gene, below which its effect may be there


_POWER = 0.99  # with which an effect would have been seen that is


_SHARE = 0.25  # of what genes of its size explain on average


@dataclass(frozen=True)
class _Effects:
    """A regression of values on genes: p of all together, and gene -> (p, power)."""

    overall: float
    genes: dict[str, tuple[float, float]]


def _idle(trials: Sequence[Trial], coordinates: Sequence[Coordinate], pareto: bool) -> list[str]:
    """Genes of which no effect is seen, though one would be.

    Within generations, so that neither the search's progress nor documents of each generation's own pass for an
    effect, the values are regressed on each coordinate and its square, and each gene's coordinates are tested
    together by an F-test. A gene is named if the genes together have an effect, its own has p > 0.1, and
    a quarter of the effect that genes of its size have on average would have been seen with a power of 0.99.
    """
    groups = [group for group in _searched(trials) if len(group) > 3]
    genes = list(dict.fromkeys(c.gene for c in coordinates if _width(c)))
    if len(genes) < 2 or not groups:
        return []
    columns = np.concatenate([_columns(group, coordinates) for group in groups])
    owners = [c.gene for c in coordinates for _ in range(_width(c))]
    free = len(columns) - len(groups) - columns.shape[1]
    if free < max(30, columns.shape[1]):
        return []
    trials = [trial for group in groups for trial in group]
    targets = np.array([list(t.climbed.values()) for t in trials]).T if pareto else _values(trials)[None]
    sizes = [len(group) for group in groups]
    effects = [_effects(_centred(target, sizes), columns, owners, free) for target in targets]
    if not all(effect.overall < _OVERALL for effect in effects):
        return []
    found = []
    for gene in genes:
        tests = [effect.genes[gene] for effect in effects]
        if all(p > _ABSENT and power >= _POWER for p, power in tests):
            cure = "search with one method" if gene == "method" else "give it under `fixed` and not as a gene"
            p = min(p for p, _ in tests)
            found.append(f"no effect was seen of {gene} over {len(columns)} candidates (p = {p:.2f}); {cure}")
    return found


def _width(coordinate: Coordinate) -> int:
    return len(coordinate.choices) - 1 if coordinate.choices else 2


def _columns(group: Sequence[Trial], coordinates: Sequence[Coordinate]) -> np.ndarray:
    """What a generation's values are regressed on: float64 (candidates, columns), each column's mean zero.

    A number gives its unit coordinate and the square of that, which sees an optimum in the middle; a choice an
    indicator for each category but the first.
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
    """Values without the means of their generations."""
    return np.concatenate([group - group.mean() for group in np.split(values, np.cumsum(sizes)[:-1])])


def _effects(values: np.ndarray, columns: np.ndarray, owners: Sequence[str], free: int) -> _Effects:
    """F-tests of all columns, and of each owner's beside the others. free: degrees of freedom of the rest."""

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


# --- the end of a search -----------------------------------------------------------------------------------


def _rising(trials: Sequence[Trial]) -> list[str]:
    """The fitness still rises in the last third of the search."""
    searched = [trial for group in _searched(trials) for trial in group]
    rising = _means_rise(trials) if all(trial.all_documents for trial in searched) else _incumbents_rise(trials)
    if not rising:
        return []
    return [
        f"the fitness was still rising at the end of {len(trials)} candidates; go on with `evomerge resume STUDY "
        f"--candidates {2 * len(trials)}`"
    ]


def _means_rise(trials: Sequence[Trial]) -> bool:
    """Whether the last third of the generations' means has a slope (t-test, p < 0.01) that matters."""
    means = np.array([_values(group).mean() for group in _searched(trials)])
    late = means[-(len(means) // _LATE) :]
    if len(means) < 6 * _LATE or np.ptp(late) == 0.0:
        return False
    fit = stats.linregress(np.arange(len(late)), late, alternative="greater")
    rise = fit.slope * (len(late) - 1)
    return bool(fit.pvalue < 0.01 and rise > _LEAST_RISE * (means.max() - means.min()))


def _incumbents_rise(trials: Sequence[Trial]) -> bool:
    """Whether the last incumbent is better than the one two thirds through the search, by three standard errors
    and so much that it matters.

    All incumbents are scored on the same documents, those kept apart, so the noise is that of a paired difference.
    """
    chosen = [t for t in trials if t.role == "select" and t.incumbent and t.value is not None]
    noise = _noise(trials)
    if not chosen or noise is None:
        return False
    end = max(trial.generation for trial in trials) + 1
    early = [trial for trial in chosen if _LATE * trial.generation < (_LATE - 1) * end]
    if not early:
        return False
    first, before, last = _values([chosen[0], early[-1], chosen[-1]]).tolist()
    enough = max(_LEAST_RISE * (last - first), 3 * noise.between / math.sqrt(chosen[-1].documents))
    return bool(last - before > enough)


@dataclass(frozen=True)
class _Noise:
    """What documents do to values, from the blocks of the last generations.

    Attributes:
        single: standard deviation of a candidate's score over documents, were blocks single documents.
        between: that of the difference of two candidates of a generation.
        documents: that all candidates of these generations saw, each counted once a generation.
        most: that a generation saw at most.
        free: degrees of freedom.
    """

    single: float
    between: float
    documents: float
    most: float
    free: int


def _noise(trials: Sequence[Trial]) -> _Noise | None:
    """None where the last generations were not scored in blocks."""
    squares = interactions = documents = most = 0.0
    free = crossed = 0
    for group in _recent(trials):
        shared = min(len(trial.blocks) for trial in group)  # of candidates that were stopped early
        longest = max(group, key=lambda trial: len(trial.blocks))
        if shared < 2 or len(group) < 2 or not longest.documents:
            continue
        block = longest.documents / len(longest.blocks)
        rows = np.array([trial.blocks[:shared] for trial in group])
        apart = rows - rows.mean(axis=1, keepdims=True)
        squares += block * float(np.square(apart).sum()) / len(group)
        interactions += block * float(np.square(apart - apart.mean(axis=0)).sum())
        free += shared - 1
        crossed += (shared - 1) * (len(group) - 1)
        documents += longest.documents
        most = max(most, longest.documents)
    if free < _RECENT:
        return None
    return _Noise(math.sqrt(squares / free), math.sqrt(2 * interactions / crossed), documents, most, free)


def _recent(trials: Sequence[Trial]) -> list[list[Trial]]:
    return [group for group in _searched(trials) if any(trial.blocks for trial in group)][-_RECENT:]


def _overfitted(trials: Sequence[Trial], fresh: bool) -> list[str]:
    """The last generations score far higher on their documents than the incumbent on those kept apart.

    The mean of whole generations is compared, which no choice among candidates has favoured, by a t-test of
    p < 0.001. Documents that come again count once.
    """
    chosen = [t for t in trials if t.role == "select" and t.incumbent and t.value is not None and t.documents]
    noise = _noise(trials)
    if not chosen or noise is None:
        return []
    seen = noise.documents if fresh else noise.most
    if finals := [trial.documents for trial in trials if trial.role == "final" and trial.documents]:
        seen = min(seen, finals[-1])  # all that are not kept apart
    incumbent = chosen[-1].value or 0.0
    recent = float(np.mean([_values(group).mean() for group in _recent(trials)]))
    error = noise.single * math.sqrt(1 / seen + 1 / chosen[-1].documents)
    if recent - incumbent <= max(error * float(stats.t.isf(1e-3, noise.free)), 1e-12):
        return []
    return [
        f"the last generations score {recent:.4f} on the documents of the search, but the best trial "
        f"{incumbent:.4f} on those kept apart: the search has fitted its documents; give it more of them"
    ]
