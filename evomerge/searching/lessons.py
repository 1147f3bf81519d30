"""What a sampler is told of its generations, and when a search stops because its candidates fail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.searching.batches import Batches
from evomerge.searching.host import Assignment, Host, Line
from evomerge.searching.lines import failed_whole, scores_again
from evomerge.searching.objective import Objective
from evomerge.searching.samplers import Generation, Result, Sampler, SamplerModule

# A search stops after so many candidates in a row that failed, in generations of which every candidate failed.
_HOPELESS = 4

_Row = tuple[float, tuple[float, ...]]  # the value of a candidate, and its objectives


class Lessons:
    """Tells a sampler what became of the candidates that it proposed, generation by generation.

    Args:
        module: the sampler's module.
        several: whether each entry of the fitness is an objective of its own.

    Attributes:
        last: the lines of the last generation that was told and did not fail whole.
        spent: document evaluations since the last look at the incumbent, which sets it to 0.
    """

    def __init__(
        self,
        module: SamplerModule,
        sampler: Sampler,
        objective: Objective,
        batches: Batches,
        host: Host,
        *,
        several: bool,
    ) -> None:
        self._module, self._sampler, self._host = module, sampler, host
        self._objective, self._batches, self._several = objective, batches, several
        self.last: list[Line] = []
        self.spent = 0
        self._worst: _Row | None = None  # the lowest value, and the lowest of each objective, so far
        self._failures = 0  # candidates that failed since the last one that was scored

    def learn(self, number: int, asked: Generation, lines: list[Line]) -> None:
        """Tells the sampler of a generation. A failed candidate counts like the worst one of its generation.

        Where all candidates of a large generation failed, the cause was not the candidates, and nothing is told.
        """
        if all(line.value is None for line in lines):
            self._failures += len(lines)
            if self._worst is not None and len(lines) < _HOPELESS:
                self._sampler.tell(number, [Result(*self._worst, failed=True)] * len(lines))
            return
        self._failures = 0
        self.last = lines
        self.spent += sum(line.documents for line in lines)
        self._see(asked, lines)
        self._sampler.tell(number, self._results(asked, lines))

    def check(self, lines: Sequence[Line]) -> None:
        """Checks that it makes sense to go on after a generation that is new in the log.

        Raises:
            StudyError: every candidate of the generation failed, and nothing was scored before, or too many
                candidates have failed in a row.
        """
        failed = all(line.value is None for line in lines)
        if failed and (self._worst is None or self._failures + len(lines) >= _HOPELESS):
            raise failed_whole(lines)

    def _see(self, asked: Generation, lines: Sequence[Line]) -> None:
        """Lets the number of blocks of later generations follow how well the blocks ranked this one."""
        longest = max(len(line.blocks) for line in lines)
        rows = [line.blocks for line in lines if line.blocks and len(line.blocks) == longest]
        if self._module.FRESH_DOCUMENTS and not asked.select and len(rows) > 1 and asked.effort == 1:
            self._batches.pace.see(np.array(rows))

    def _results(self, asked: Generation, lines: Sequence[Line]) -> list[Result]:
        """What the sampler is told of each line. Not all of them failed."""
        rows = {
            line.slot: (line.value, line.objectives if self._several else (line.value,))
            for line in lines
            if line.value is not None
        }
        worst = _worst(list(rows.values()))
        self._worst = worst if self._worst is None else _worst([worst, self._worst])
        documents = self._document_scores(asked, lines) if self._module.WANTS_DOCUMENT_SCORES else {}
        return [
            Result(*worst, failed=True)
            if line.slot not in rows
            else Result(*rows[line.slot], documents.get(line.slot), line.gradient)
            for line in lines
        ]

    def _document_scores(self, asked: Generation, lines: Sequence[Line]) -> dict[int, np.ndarray]:
        """Slot -> the score of each document, float64 (documents,). Lines from the log are evaluated again."""
        finished = {line.slot: line for line in lines if line.value is not None}
        scores = {slot: line.evaluation.scores for slot, line in finished.items() if line.evaluation is not None}
        chosen = self._batches.chosen_again(asked)
        missing = [Assignment(slot, line.genome, chosen) for slot, line in finished.items() if slot not in scores]
        scores.update({slot: scores_again(one).scores for slot, one in self._host.evaluate(missing)})
        return {slot: self._objective.in_one_row(own) for slot, own in scores.items()}


def _worst(rows: Sequence[_Row]) -> _Row:
    """The lowest value, and the lowest of each objective."""
    objectives = [row for _, row in rows if len(row) == len(rows[0][1])]
    return min(value for value, _ in rows), tuple(min(column) for column in zip(*objectives, strict=True))
