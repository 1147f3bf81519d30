"""The course of a search, generation by generation: ask the sampler, evaluate, tell the sampler.

A search knows nothing of models: a `host.Host` evaluates and keeps the log. The lines of the log are told to the
sampler again and not evaluated again, so that a search goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evomerge.errors import StudyError
from evomerge.searching.batches import Batches
from evomerge.searching.documents import SELECT, Chosen, Documents, Fidelity
from evomerge.searching.host import Assignment, Host, Line, Reserve
from evomerge.searching.incumbent import Incumbent
from evomerge.searching.lessons import Lessons
from evomerge.searching.lines import Context, check_nothing_after, check_proposals, line_of, searched
from evomerge.searching.objective import Objective
from evomerge.searching.samplers import Generation, Sampler, SamplerModule
from evomerge.searching.spaces.genes import Genome

_LOOKS_AT_THE_END = 2  # one at the candidate that the search holds to be best, one at the best known point


class Search:
    """A search under way.

    Args:
        module: the sampler's module, whose flags say what the sampler needs.
        sampler: proposes the genomes.
        objective: the value to climb, bound to the documents.
        seed: the seed of the documents that each generation sees.
        fidelity: which documents are spent on which candidate.
        host: evaluates genomes, and keeps the log.
        several: whether each entry of the fitness is an objective of its own.

    Attributes:
        batches, incumbent, lessons: the parts of a search, which `asynchronous.run_async` uses as well.
    """

    def __init__(
        self,
        module: SamplerModule,
        sampler: Sampler,
        objective: Objective,
        seed: int,
        fidelity: Fidelity,
        host: Host,
        *,
        several: bool = False,
    ) -> None:
        self.sampler, self.objective, self.host, self.fidelity = sampler, objective, host, fidelity
        fresh = module.FRESH_DOCUMENTS
        batch = fidelity.mini_batch(objective.documents, fresh=fresh)
        share = fidelity.select if fidelity.select != "auto" else SELECT if batch else 0.0
        self.documents = Documents(objective, seed, batch, share)
        self.batches = Batches(self.documents, fresh=fresh, adapt=fidelity.adapt)
        self.lessons = Lessons(module, sampler, objective, self.batches, host, several=several)
        self.incumbent = Incumbent(host, objective, self.documents, sampler, self.lessons)

    @property
    def reserve(self) -> Reserve:
        """What the end of the search takes: the last looks, and scoring the winner on all documents."""
        if self.documents.batch is None:
            return Reserve()
        looks = _LOOKS_AT_THE_END if self.documents.selecting else 0
        rest = self.documents.searching if self.fidelity.final else 0
        return Reserve(looks + self.fidelity.final, rest + looks * self.documents.selecting)

    @property
    def _looks_between(self) -> int:
        """How many looks at the incumbent may follow a generation."""
        return 1 if self.documents.selecting else 0

    def run(self) -> None:
        """Runs or resumes the search, generation by generation, until the budget is spent.

        Raises:
            StudyError: every candidate of a generation failed, or the sampler does not propose what the log says,
                or the budget has no room for the first generation.
        """
        number = 0
        while True:
            asked = self.sampler.ask(number)
            if not asked.genomes:
                raise StudyError(f"the sampler has nothing to propose for generation {number}")
            lines = self._generation(number, asked)
            if not lines and number == 0:
                raise StudyError(self.too_small(len(asked.genomes), looks=self._looks_between))
            if len(lines) < len(asked.genomes):
                break
            self.lessons.learn(number, asked, lines)
            if self.documents.batch and self.documents.selecting and self.incumbent.due(number):
                self.incumbent.look(number)
            number += 1
        self.finish(number)

    def finish(self, number: int) -> None:
        """Ends the search after so many generations, with the last looks and the score of the winner."""
        self.incumbent.finish(number, final=self.fidelity.final)

    def too_small(self, size: int, *, looks: int = 0) -> str:
        """The message about a budget that has no room for the first generation.

        Args:
            size: how many candidates the search takes to begin with.
            looks: how many looks at the incumbent may follow these before the end.
        """
        reserve = self.reserve
        needed = f"the budget is too small: the search takes {size} candidates to begin with"
        if not reserve.documents:
            return f"{needed}; raise it"
        least = size + looks + reserve.candidates
        return (
            f"{needed} and {reserve.candidates} candidates and {reserve.documents} documents for its end; raise it "
            f"to {least} candidates at least, or more than {reserve.documents} documents"
        )

    def _generation(self, number: int, asked: Generation) -> list[Line]:
        """The lines of a generation, from the log or evaluated now; fewer, or none, where the budget ends.

        Raises:
            StudyError: the log does not fit what the sampler asks for, or every candidate failed.
        """
        known = [line for line in searched(self.host.log()) if line.generation == number]
        check_proposals(known, asked.genomes)
        if [line.slot for line in known] != list(range(len(known))):
            raise StudyError(
                f"generation {number} of the log has gaps, as `mode: async` leaves them: go on in that"
            )
        size = len(known) + self._room(asked.genomes, known)
        blocks = self.batches.blocks(asked)
        if size > len(known):
            check_nothing_after(self.host.log(), number)
            self.host.begin(number, size)
            length = known[0].log_length_when_asked if known else len(searched(self.host.log()))
            context = Context(number, asked, length)
            known += self._evaluated(context, range(len(known), size), blocks)
            if len(known) == len(asked.genomes):
                self.lessons.check(known)
        return known

    def _room(self, genomes: Sequence[Genome], known: Sequence[Line]) -> int:
        """How many candidates of a generation are still to be evaluated.

        In mini-batches the values of a generation compare with each other alone, so a generation is either
        evaluated whole or not begun.
        """
        left = len(genomes) - len(known)
        if self.documents.batch is None:
            return self.host.room(left, begun=bool(known), reserve=self.reserve)
        if known:
            return left
        end = self.reserve
        reserve = Reserve(end.candidates + self._looks_between, end.documents)
        room = self.host.room(left, begun=False, reserve=reserve)
        return 0 if room < left else room

    def _evaluated(self, context: Context, slots: Iterable[int], blocks: list[Chosen] | None) -> list[Line]:
        """Evaluates the genomes of some slots on the same documents.

        Lines are logged in the order of the slots, each as soon as those before it are known.
        """
        asked = context.asked
        chosen = self.batches.chosen(asked, blocks)
        waiting = list(slots)
        assignments = [Assignment(slot, asked.genomes[slot], chosen, asked.gradient) for slot in waiting]
        ready: dict[int, Line] = {}
        lines = []
        for slot, evaluation in self.host.evaluate(assignments):
            ready[slot] = line_of(self.objective, context, slot, evaluation, blocks=blocks, chosen=chosen)
            while waiting and waiting[0] in ready:
                lines.append(self.host.keep(ready.pop(waiting.pop(0))))
        return lines
