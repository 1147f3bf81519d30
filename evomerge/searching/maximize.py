"""A search for a fitness of one's own: a Python function, without models and without a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evomerge.searching import samplers
from evomerge.searching.documents import Fidelity
from evomerge.searching.host import Assignment, Evaluation, Line, Reserve
from evomerge.searching.objective import Objective
from evomerge.searching.samplers import Problem
from evomerge.searching.search import Search
from evomerge.searching.spaces.genes import Coordinate, Genome, initial

# Is called with the document evaluations spent, all lines, and the genome that the sampler recommends.
Watch = Callable[[int, Sequence[Line], "Genome | None"], None]
# Is called with a genome and ids of documents, ascending; returns the score of each document.
Evaluate = Callable[[Genome, Sequence[int]], "np.ndarray | Sequence[float]"]


@dataclass(frozen=True)
class Maximum:
    """What `maximize` found.

    Attributes:
        best: the genome that the search held to be best in the end.
        lines: all evaluations, in order.
    """

    best: Genome
    lines: tuple[Line, ...]

    @property
    def documents(self) -> int:
        """How many document evaluations the search took."""
        return sum(line.documents for line in self.lines)


class _Memory:
    """A host that evaluates a Python function and keeps the log in memory.

    Args:
        documents: the number of documents that there are.
        candidates, budget: the search ends after so many candidates, or document evaluations; may be infinite.
        watch: is called before each generation but the first.
    """

    def __init__(
        self, evaluate: Evaluate, documents: int, candidates: float, budget: float, watch: Callable[[], None]
    ) -> None:
        self._evaluate, self._documents, self._watch = evaluate, documents, watch
        self._candidates, self._budget = candidates, budget
        self.lines: list[Line] = []
        self.spent = 0

    def log(self) -> Sequence[Line]:
        return self.lines

    def evaluate(self, assignments: Iterable[Assignment | None]) -> Iterator[tuple[int, Evaluation]]:
        for one in assignments:
            assert one is not None
            ids = range(self._documents) if one.documents is None else one.documents[_ONLY]
            scores = {_ONLY: np.asarray(self._evaluate(one.genome, ids), dtype=np.float64)}
            finite = bool(np.isfinite(scores[_ONLY]).all())
            value = float(scores[_ONLY].mean())
            yield one.key, Evaluation(scores, value) if finite else Evaluation(reason="a score is not finite")

    def keep(self, line: Line) -> Line:
        self.lines.append(replace(line, evaluation=None))  # which holds the scores of every document
        self.spent += line.documents
        return line

    def room(self, wanted: int, *, begun: bool, reserve: Reserve) -> int:
        if begun:
            return wanted
        if self.spent + reserve.documents >= self._budget:
            return 0
        return int(min(wanted, max(self._candidates - len(self.lines) - reserve.candidates, 0)))

    def begin(self, generation: int, size: int) -> None:
        if generation:
            self._watch()


_ONLY = "documents"  # the name of the one entry


def maximize(
    evaluate: Evaluate,
    coordinates: Sequence[Coordinate],
    documents: int,
    *,
    sampler: str = "cma",
    options: Mapping[str, Any] | None = None,
    fidelity: Fidelity | None = None,
    candidates: int | None = None,
    budget: int | None = None,
    seed: int = 0,
    starts: Sequence[Genome] = (),
    watch: Watch = lambda spent, lines, recommended: None,
) -> Maximum:
    """Searches the maximum of a fitness of one's own, with the samplers and the mini-batches of a study.

        maximum = maximize(lambda genome, ids: scores[ids], coordinates, documents=1000, budget=10_000)

    Args:
        evaluate: (genome, ids of documents, ascending) -> the score of each document, float (ids,); more is better.
            A genome with a score that is not finite counts as failed.
        coordinates: what a genome consists of.
        documents: the number of documents; the fitness is the mean score over all of them.
        sampler, options: the sampler's name, and its options.
        fidelity: which documents are spent on which candidate; the rules of a study by default.
        candidates, budget: the search ends after so many candidates, or document evaluations; give at least one.
        starts: the genomes to look at first; that of the coordinates' `init` by default.
        watch: is called before each generation, and at the end, with the document evaluations spent, all lines, and
            the genome that the sampler recommends.

    Raises:
        ConfigError: there is no such sampler.
        ValueError: no end is given, or the sampler climbs gradients.
        StudyError: nothing could be scored.
    """
    if candidates is None and budget is None:
        raise ValueError("give candidates or budget, or the search has no end")
    module = samplers.load(sampler)
    choice = module.Options.model_validate(options or {})
    if choice.climbs_gradients:
        raise ValueError("gradients need a model: a fitness of one's own has no slope to give")
    problem = Problem(coordinates, seed, list(starts) or [initial(coordinates)])
    proposer = module.make(problem, choice)

    def progress() -> None:
        watch(memory.spent, memory.lines, proposer.recommend())

    memory = _Memory(evaluate, documents, candidates or np.inf, budget or np.inf, progress)
    objective = Objective({_ONLY: documents})
    Search(module, proposer, objective, seed, fidelity or Fidelity(), memory).run()
    progress()
    return Maximum(_best(memory.lines, proposer.recommend()), tuple(memory.lines))


def _best(lines: Sequence[Line], recommended: Genome | None) -> Genome:
    """The last incumbent; else what the sampler recommends; else the genome of the highest value."""
    finished = [line for line in lines if line.value is not None]
    if incumbents := [line.genome for line in finished if line.incumbent]:
        return incumbents[-1]
    whole = [line for line in finished if line.all_documents]
    return recommended or max(whole or finished, key=lambda line: line.value or 0.0).genome
