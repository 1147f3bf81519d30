"""A search for a fitness of one's own, without models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evomerge.searching import samplers
from evomerge.searching.documents import Entry, Fidelity
from evomerge.searching.samplers import Problem
from evomerge.searching.search import Answer, Line, Search, Task
from evomerge.searching.spaces.genes import Coordinate, Genome, initial

# --- a fitness of one's own ------------------------------------------------------------------------------------

Watch = Callable[[int, Sequence[Line], "Genome | None"], None]


Evaluate = Callable[[Genome, Sequence[int]], "np.ndarray | Sequence[float]"]


@dataclass(frozen=True)
class Maximum:
    """What `maximize` found.

    Attributes:
        best: the genome that was held to be best in the end.
        lines: all evaluations, in order. documents: how many document evaluations they took.
    """

    best: Genome
    lines: tuple[Line, ...]

    @property
    def documents(self) -> int:
        return sum(line.documents for line in self.lines)


class _Memory:
    """A host in memory."""

    def __init__(
        self, evaluate: Evaluate, documents: int, candidates: float, budget: float, watch: Callable[[], None]
    ) -> None:
        self._evaluate, self._documents, self._watch = evaluate, documents, watch
        self._candidates, self._budget = candidates, budget
        self.lines: list[Line] = []
        self.spent = 0

    def log(self) -> Sequence[Line]:
        return self.lines

    def evaluate(self, tasks: Iterable[Task | None]) -> Iterator[tuple[int, Answer]]:
        for task in tasks:
            assert task is not None
            ids = range(self._documents) if task.documents is None else task.documents[_ONLY]
            scores = {_ONLY: np.asarray(self._evaluate(task.genome, ids), dtype=np.float64)}
            finite = bool(np.isfinite(scores[_ONLY]).all())
            value = float(scores[_ONLY].mean())
            yield task.key, Answer(scores, value) if finite else Answer(reason="a score is not finite")

    def keep(self, line: Line) -> Line:
        self.lines.append(replace(line, answer=None))  # which holds the scores of every document
        self.spent += line.documents
        return line

    def room(self, wanted: int, *, begun: bool, reserve: int) -> int:
        if begun:
            return wanted
        if self.spent + reserve >= self._budget:
            return 0
        return int(min(wanted, max(self._candidates - len(self.lines), 0)))

    def begin(self, generation: int, size: int) -> None:
        if generation:
            self._watch()


_ONLY = "documents"


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
    """Searches the maximum of a fitness of one's own, with the samplers and the racing of a study.

        found = maximize(lambda genome, ids: scores[ids], coordinates, documents=1000, budget=10_000)

    Args:
        evaluate: (genome, ids of documents, ascending) -> the score of each, more is better.
        documents: how many there are; the fitness is the mean over them.
        options: the sampler's.
        candidates, budget: it ends after so many candidates, or document evaluations; give at least one.
        starts: points to look at first; the coordinates' `init` by default.
        watch: is told before each generation, and at the end, of the document evaluations spent, all lines, and
            what the sampler recommends.

    Raises:
        ConfigError: there is no such sampler. ValueError: no end is given. StudyError: nothing could be scored.
    """
    if candidates is None and budget is None:
        raise ValueError("give candidates or budget, or the search has no end")
    module = samplers.load(sampler)
    choice = module.Options.model_validate(options or {})
    if choice.climbs_gradients:
        raise ValueError("gradients need a model: a fitness of one's own has no slope to give")
    problem = Problem(coordinates, seed, list(starts) or [initial(coordinates)])
    made = module.make(problem, choice)

    def progress() -> None:
        watch(memory.spent, memory.lines, made.recommend())

    memory = _Memory(evaluate, documents, candidates or np.inf, budget or np.inf, progress)
    entries = [Entry(_ONLY, documents, 1.0)]
    Search(module, made, entries, seed, fidelity or Fidelity(), memory).run()
    progress()
    finished = [line for line in memory.lines if line.value is not None]
    chosen = [line.genome for line in finished if line.incumbent]
    if not chosen:
        whole = [line for line in finished if line.whole]
        chosen = [made.recommend() or max(whole or finished, key=lambda line: line.value or 0.0).genome]
    return Maximum(chosen[-1], tuple(memory.lines))
