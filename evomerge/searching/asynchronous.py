"""A search without waiting: a free worker never waits for the last candidate of a generation.

A candidate is ranked within the generation for which it was asked. Results enter in the order in which they come;
the log keeps that order, and a resumed search replays the log in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from evomerge.errors import StudyError
from evomerge.searching import reliability
from evomerge.searching.documents import Chosen
from evomerge.searching.host import Assignment, Line
from evomerge.searching.lines import Context, check_proposals, line_of, searched
from evomerge.searching.search import Search

# Blocks from the first of one generation to the first of the next: fixed, for generations that are under way at the
# same time do not know how many blocks the others take.
_STRIDE = 4 * reliability.MOST_BLOCKS

_Place = tuple[int, int]  # generation and slot


def run_async(search: Search) -> None:
    """Runs or resumes a search without waiting, until the budget is spent.

    Raises:
        StudyError: for the reasons for which `search.Search.run` raises it.
    """
    _Stream(search).run()


class _Stream:
    """The generations under way, and their finished lines."""

    def __init__(self, search: Search) -> None:
        self._search, self._host = search, search.host
        # Of each generation under way, by its number: its context, its finished lines by slot, and its blocks.
        self._open: dict[int, Context] = {}
        self._lines: dict[int, dict[int, Line]] = {}
        self._blocks: dict[int, list[Chosen] | None] = {}
        self._count = 0  # the number of generations that the sampler was asked for

    def run(self) -> None:
        """Replays the log, evaluates until the budget is spent, and ends the search."""
        search = self._search
        under_way: dict[int, _Place] = {}
        for key, evaluation in self._host.evaluate(self._assignments(self._replayed(), under_way)):
            number, slot = under_way.pop(key)
            context, blocks = self._open[number], self._blocks[number]
            chosen = search.batches.chosen(context.asked, blocks)
            line = line_of(search.objective, context, slot, evaluation, blocks=blocks, chosen=chosen)
            self._enter(self._host.keep(line), new=True)
        if not self._host.log():
            raise StudyError(search.too_small(1))
        search.finish(self._count)

    def _replayed(self) -> list[_Place]:
        """Asks and tells the sampler in the order of the log.

        Returns:
            The places of the candidates that were asked for and have no line in the log.
        """
        log = searched(self._host.log())
        asked_at = {line.generation: line.log_length_when_asked for line in log}
        last = max(asked_at, default=-1)
        # A generation without a line in the log is asked for together with the next one that has a line.
        for number in range(last, -1, -1):
            asked_at.setdefault(number, asked_at.get(number + 1, 0))
        waiting = list(range(last + 1))
        for position in range(len(log) + 1):
            while waiting and asked_at[waiting[0]] <= position:
                self._ask(waiting.pop(0), asked_at[self._count])
            if position < len(log):
                line = log[position]
                context = self._open.get(line.generation)
                check_proposals([line], context.asked.genomes if context else [])
                self._enter(line)
        return [
            (number, slot)
            for number, context in self._open.items()
            for slot in range(len(context.asked.genomes))
            if slot not in self._lines[number]
        ]

    def _ask(self, number: int, log_length: int) -> bool:
        """Asks the sampler for a generation and opens it. Returns False where the sampler has to wait."""
        asked = self._search.sampler.ask(number)
        if not asked.genomes:
            return False
        self._open[number] = Context(number, asked, log_length)
        self._lines[number] = {}
        self._search.batches.skip_to(number * _STRIDE)
        self._blocks[number] = self._search.batches.blocks(asked)
        self._count = number + 1
        return True

    def _assignments(self, pending: list[_Place], under_way: dict[int, _Place]) -> Iterator[Assignment | None]:
        """Makes an assignment whenever a worker is free; None says that the sampler has to wait for a result.

        Args:
            pending: places that were asked for before.
            under_way: is filled in: key of an assignment -> its place, until it is finished.
        """
        for key in itertools.count():
            while not pending:
                if not self._has_room(len(under_way)):
                    return
                pending = self._next_generation()
                if not pending:
                    if not under_way:
                        raise StudyError("the sampler waits, but nothing is under way")
                    yield None
            if not self._has_room(len(under_way)):
                return
            number, slot = under_way[key] = pending.pop(0)
            asked = self._open[number].asked
            chosen = self._search.batches.chosen(asked, self._blocks[number])
            yield Assignment(key, asked.genomes[slot], chosen, asked.gradient)

    def _next_generation(self) -> list[_Place]:
        """The places of a new generation; [] where the sampler has to wait."""
        number = self._count
        if not self._ask(number, len(searched(self._host.log()))):
            return []
        size = len(self._open[number].asked.genomes)
        self._host.begin(number, size)
        return [(number, slot) for slot in range(size)]

    def _has_room(self, under_way: int) -> bool:
        """Whether the budget has room for one candidate besides so many under way."""
        return self._host.room(under_way + 1, begun=False, reserve=self._search.reserve) > under_way

    def _enter(self, line: Line, *, new: bool = False) -> None:
        """Takes in a line of the log. If its generation is complete with it, tells the sampler of the generation.

        Args:
            new: whether the line was evaluated now, and not replayed.

        Raises:
            StudyError: the line is new, and every candidate of its generation failed.
        """
        lines = self._lines[line.generation]
        lines[line.slot] = line
        context = self._open[line.generation]
        if len(lines) < len(context.asked.genomes):
            return
        complete = [lines[slot] for slot in sorted(lines)]
        del self._open[line.generation], self._lines[line.generation], self._blocks[line.generation]
        if new:
            self._search.lessons.check(complete)
        self._search.lessons.learn(line.generation, context.asked, complete)
