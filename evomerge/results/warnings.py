"""Warnings that help: what is wrong with a search, before it and after, and what to do about it.

A warning is one sentence. Where the data cannot tell, nothing is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from evomerge.results.end_of_search import overfitted, still_rising
from evomerge.results.generations import generations_of
from evomerge.results.idle_genes import idle_genes
from evomerge.searching.spaces.genes import Coordinate
from evomerge.searching.spaces.operator_genes import Operator
from evomerge.searching.spaces.space import SearchSpace
from evomerge.studies.experiment import Budget, SamplerChoice
from evomerge.studies.trials import Trial

PER_DIMENSION = 10  # how many candidates a search needs for each gene
GENERATIONS = 5  # how many generations a sampler needs to learn from
FAILURES = 0.1  # if more than this share of the candidates failed, a warning says so


def before(coordinates: Sequence[Coordinate], budget: Budget, sampler: SamplerChoice) -> list[str]:
    """The warnings about an experiment before it runs.

    A search needs about ten candidates a dimension, for two reasons. An evolution strategy with the best of step
    sizes comes closer to the optimum of a sphere by a factor exp(-0.2 / d) a candidate at most (Beyer 2001, "The
    Theory of Evolution Strategies", ch. 3), so ten a dimension shorten the distance at best sevenfold; to learn a
    covariance takes far more (Hansen 2016, arXiv 1604.00772). And a Gaussian process needs that many to predict
    well (Loeppky, Sacks and Welch 2009, "Choosing the sample size of a computer experiment", Technometrics 51).
    A sampler that climbs gradients sees all dimensions at once, and needs none of this.

    Only a budget of candidates is judged, because it is not known before how many candidates another budget allows.
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


def after(
    trials: Sequence[Trial],
    coordinates: Sequence[Coordinate],
    *,
    ended: bool = True,
    pareto: bool = False,
    fresh: bool = True,
) -> list[str]:
    """The warnings about a study from the trials of its search.

    Args:
        coordinates: the coordinates of the trials' genomes.
        ended: whether its budget is spent. The fitness of a study that still runs is expected to rise.
        pareto: whether each task is an objective of its own, so that the value is not what was climbed.
        fresh: whether each generation that was not scored on all documents had documents of its own.
    """
    sentences = [*_failing(trials), *_flat(trials, pareto), *idle_genes(trials, coordinates, pareto)]
    if not pareto:
        sentences += [*(still_rising(trials) if ended else []), *overfitted(trials, fresh)]
    return sentences


def coordinates_of(space: SearchSpace, operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Coordinate]:
    """The coordinates of trials' genomes, without opening any model. A choice has the categories tried so far."""
    coordinates = []
    options = {point.name: point for operator in operators for point in operator.coordinates()}
    for name, value in trials[0].genome.items() if trials else ():
        if name in options:
            coordinates.append(options[name])
        elif isinstance(value, str):
            tried = tuple(sorted({str(trial.genome[name]) for trial in trials}))
            coordinates.append(Coordinate(name, 0.0, 1.0, value, False, tried))
        else:
            point = Coordinate(name, 0.0, 1.0, value, False)
            gene = space.numbers[point.gene]
            coordinates.append(replace(point, low=gene.low, high=gene.high, log=gene.scale == "log"))
    return coordinates


def _failing(trials: Sequence[Trial]) -> list[str]:
    """A warning if more than one candidate in ten failed, else []."""
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
    """A warning if in most generations all candidates have the same value, else [].

    A sampler learns nothing from such a generation.
    """
    generations = [group for group in generations_of(trials) if len(group) > 1]
    flat = [g for g in generations if len({tuple(t.climbed.values()) if pareto else t.value for t in g}) == 1]
    if len(flat) < 3 or 2 * len(flat) <= len(generations):
        return []
    return [
        f"in {len(flat)} of {len(generations)} generations all candidates have the same fitness, so the search has "
        "nothing to climb; give a smooth metric under `climb`, such as probability or loglikelihood, or more "
        "documents"
    ]
