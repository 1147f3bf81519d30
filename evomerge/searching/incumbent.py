"""The incumbent: the best candidate known so far, decided on documents that no search candidate sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evomerge.searching.documents import Chosen, Documents
from evomerge.searching.host import Assignment, Host, Line
from evomerge.searching.lessons import Lessons
from evomerge.searching.lines import (
    Context,
    best_genome,
    check_nothing_after,
    line_of,
    scores_again,
    searched,
)
from evomerge.searching.objective import Objective, Scores
from evomerge.searching.samplers import Generation, Sampler
from evomerge.searching.spaces.genes import Genome

# Between two looks so many times the documents kept apart are spent on the search.
LOOK_AFTER = 4

_FIRST_LOOK = 32  # documents on which a look begins; it doubles them until it is certain
_CERTAIN = 2  # a candidate that is worse by so many standard errors is looked at no longer


class Incumbent:
    """Compares the candidate that the search holds to be best with the best before it, the incumbent.

    A comparison is called a look. It pairs the two candidates' scores document by document, on a growing number of
    the documents kept apart, and its line in the log has the role `select`.
    """

    def __init__(
        self, host: Host, objective: Objective, documents: Documents, sampler: Sampler, lessons: Lessons
    ) -> None:
        self._host, self._objective, self._documents = host, objective, documents
        self._sampler, self._lessons = sampler, lessons
        self._line: Line | None = None
        self._scores: Scores | None = None

    def due(self, number: int) -> bool:
        """Whether to look after a generation.

        It is time where enough documents were spent since the last look. The log may also hold a look here because
        the search had a smaller budget before and ended at this generation: that look is then repeated.
        """
        enough = self._lessons.spent >= LOOK_AFTER * self._documents.selecting
        return enough or self._logged(number, "select") is not None

    def look(self, number: int, genome: Genome | None = None) -> None:
        """Compares a genome with the incumbent, or takes the comparison from the log.

        Args:
            number: the generation after which the look comes.
            genome: the genome to compare; the one that the search holds to be best by default.

        Raises:
            StudyError: the log goes on differently from here.
        """
        self._lessons.spent = 0
        if (logged := self._logged(number, "select")) is not None:
            self._judge(logged)
            return
        genome = genome or self.recommended()
        if genome is None or (self._line is not None and genome == self._line.genome):
            return
        log = self._host.log()
        check_nothing_after(log, number)
        context = Context(number, Generation([genome], select=True), len(searched(log)))
        self._judge(self._host.keep(self._compared(context)))

    def recommended(self) -> Genome | None:
        """The genome that the search holds to be best: the sampler's choice, else the best of the last generation.

        None where nothing has been scored.
        """
        return self._sampler.recommend() or best_genome(self._lessons.last)

    def finish(self, number: int, *, final: bool) -> None:
        """Takes the last looks, and then scores the winner on all documents, for the tables.

        Args:
            number: how many generations the search had.
            final: whether the winner is to be scored on all documents.
        """
        if self._documents.batch is None or not self._lessons.last:
            return
        if self._documents.selecting:
            self.look(number)
            # A search may end below a point that was known before it, such as a lone expert.
            known = [line for line in searched(self._host.log()) if line.generation == 0]
            if (best := best_genome(known)) is not None:
                self.look(number + 1, best)
            genome = None if self._line is None else self._line.genome
        else:
            genome = self.recommended()
        if final and genome is not None and self._logged(number, "final") is None:
            self._score_on_all(number, genome)

    def _score_on_all(self, number: int, genome: Genome) -> None:
        """Scores a genome on all documents, and logs it as the winner."""
        context = Context(number, Generation([genome]), len(searched(self._host.log())))
        ((_, evaluation),) = self._host.evaluate([Assignment(0, genome, None)])
        line = line_of(self._objective, context, 0, evaluation)
        # The host has its answers to the documents kept apart from the look at it, so these cost nothing.
        spent = max(line.documents - self._documents.selecting, 0)
        self._host.keep(replace(line, role="final", incumbent=evaluation.reason is None, documents=spent))

    def _compared(self, context: Context) -> Line:
        """The line of a look.

        The documents are doubled until it is certain that the genome is worse, or all those kept apart were scored.
        """
        rival = self._rival()
        share = min(_FIRST_LOOK / max(self._documents.selecting, 1), 1.0)
        while True:
            chosen = self._documents.select(share)
            ((_, evaluation),) = self._host.evaluate([Assignment(0, context.asked.genomes[0], chosen)])
            gain, hopeless = 1.0, evaluation.reason is not None
            if rival is not None and not hopeless:
                difference = self._objective.difference(evaluation.scores, self._at(rival, chosen))
                gain, hopeless = difference.mean, difference.mean + _CERTAIN * difference.error < 0
            if hopeless or share == 1.0:
                break
            share = min(2 * share, 1.0)
        line = line_of(self._objective, context, 0, evaluation, chosen=chosen)
        return replace(line, role="select", all_documents=False, incumbent=not hopeless and gain > 0)

    def _at(self, scores: Scores, chosen: Chosen) -> Scores:
        """The scores of the chosen documents, from the scores of all documents kept apart."""
        every = self._documents.select()
        return {name: scores[name][np.searchsorted(every[name], ids)] for name, ids in chosen.items()}

    def _rival(self) -> Scores | None:
        """The incumbent's scores of all documents kept apart; None where there is no incumbent yet."""
        if self._line is not None and self._scores is None:  # the line comes from the log
            ((_, evaluation),) = self._host.evaluate([Assignment(0, self._line.genome, self._documents.select())])
            self._scores = scores_again(evaluation).scores
        return self._scores

    def _judge(self, line: Line) -> None:
        """Makes the candidate of a look the incumbent, if it was better."""
        if line.incumbent:
            self._line = line
            self._scores = line.evaluation.scores if line.evaluation is not None else None

    def _logged(self, number: int, role: str) -> Line | None:
        """The last line of a role in a generation; None if the log has none."""
        lines = [line for line in self._host.log() if line.generation == number and line.role == role]
        return lines[-1] if lines else None
