"""The course of a search: ask, spend documents, tell; generation by generation, or without waiting.

It knows nothing of models: a `Host` evaluates and keeps the log. A study is one; `maximize` is another, for a
fitness of one's own. What the log holds is told again instead of being evaluated, so that a search goes on where it
stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from evomerge.errors import StudyError
from evomerge.searching import reliability
from evomerge.searching.documents import LOOK_AFTER, SELECT, Chosen, Documents, Entry, Fidelity, block_values, union
from evomerge.searching.reliability import Pace
from evomerge.searching.samplers import Generation, Result, Sampler, SamplerModule
from evomerge.searching.spaces.genes import Genome

Role = Literal["search", "select", "final"]


BACKWARD = 3  # what a document costs where its gradient is wanted: the pass back counts as two forward

_FIRST_LOOK = 32  # documents of the first comparison with the incumbent


_ASYNC_STRIDE = 4 * reliability.MOST_BLOCKS  # blocks between two generations that do not know of each other


_HOPELESS = 4  # candidates that failed one after the other, in generations that failed whole: the search stops


@dataclass(frozen=True)
class Task:
    """Something to evaluate. documents: None for all. `key` comes back with its answer."""

    key: int
    genome: Genome
    documents: Chosen | None
    gradient: bool = False


@dataclass(frozen=True)
class Answer:
    """What an evaluation found.

    Attributes:
        scores: entry -> the score of each document, float64 (documents,), in the order of their ids.
        value: the fitness, where it is not the documents' weighted mean.
        gradient: coordinate -> derivative of the value.
        reason: why there is none of these.
        source: the host's own.
    """

    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    value: float | None = None
    gradient: Mapping[str, float] | None = None
    reason: str | None = None
    source: Any = None


@dataclass(frozen=True)
class Line:
    """A line of the log, as far as a search needs it; see `records.Trial` for the attributes.

    Attributes:
        objectives: the entries' scores, in the order of the fitness.
        documents: how many document evaluations it took.
        answer: of the last evaluation; None where it comes from the log.
    """

    generation: int
    slot: int
    genome: Genome
    value: float | None
    role: Role = "search"
    objectives: tuple[float, ...] = ()
    blocks: tuple[float, ...] = ()
    whole: bool = True
    incumbent: bool = False
    known: int = 0
    gradient: Mapping[str, float] | None = None
    documents: int = 0
    reason: str | None = None
    answer: Answer | None = None


class Host(Protocol):
    """Evaluates, and keeps the log."""

    def log(self) -> Sequence[Line]:
        """All that is in the log, in order."""

    def evaluate(self, tasks: Iterable[Task | None]) -> Iterator[tuple[int, Answer]]:
        """Evaluates tasks, in any order, as `workers.Pool.run` does."""

    def keep(self, line: Line) -> Line:
        """Puts a line into the log. Returns it as the log has it, with its answer: what is learned from a line must
        not depend on whether it was read."""

    def room(self, wanted: int, *, begun: bool, reserve: int) -> int:
        """How many of so many candidates of a generation the budget still has room for.

        begun: whether some of it are in the log. reserve: documents that must remain.
        """

    def begin(self, generation: int, size: int) -> None:
        """A generation of so many candidates begins."""


class Search:
    """A search under way.

    Args:
        module: the sampler's.
        entries: of the fitness.
        many: whether each entry is an objective of its own.
    """

    def __init__(
        self,
        module: SamplerModule,
        sampler: Sampler,
        entries: Sequence[Entry],
        seed: int,
        fidelity: Fidelity,
        host: Host,
        *,
        many: bool = False,
    ) -> None:
        self._module, self._sampler, self._host, self._many = module, sampler, host, many
        self._fidelity = fidelity
        batch = fidelity.mini_batch(sum(entry.documents for entry in entries), fresh=module.FRESH_DOCUMENTS)
        share = fidelity.select if fidelity.select != "auto" else SELECT if batch else 0.0
        self._documents = Documents(entries, seed, batch, share)
        searched = self._documents.whole - self._documents.selecting
        most = min(reliability.MOST_BLOCKS, max(searched // self._documents.block, 1))
        self._pace = Pace(fidelity.adapt, most)
        self._next_block = 0
        self._since_look = 0
        self._fixed: list[Chosen] | None = None
        self._incumbent: Line | None = None
        self._incumbent_scores: Mapping[str, np.ndarray] | None = None
        self._last: list[Line] = []
        self._worst: tuple[float, tuple[float, ...]] | None = None  # value and objectives of all that was scored
        self._failures = 0

    # --- one generation after the other ---

    def run(self) -> None:
        """Goes on until the budget is spent.

        Raises:
            StudyError: every candidate of a generation failed, or the sampler does not propose what the log says,
                or the budget has no room for the first generation.
        """
        number = 0
        while True:
            asked = self._sampler.ask(number)
            if not asked.genomes:
                raise StudyError(f"the sampler has nothing to propose for generation {number}")
            found = self._generation(number, asked)
            if not found and number == 0:
                raise StudyError(self._too_small(len(asked.genomes)))
            if len(found) < len(asked.genomes):
                break
            self._learn(number, asked, found)
            if self._documents.batch and self._documents.selecting and self._time_to_look(number):
                self._look(number)
            number += 1
        self._finish(number)

    def _generation(self, number: int, asked: Generation) -> list[Line]:
        """What became of a generation's genomes; fewer, or none, where the budget ends."""
        known = [line for line in self._host.log() if line.generation == number and line.role == "search"]
        _same(known, asked.genomes)
        if [line.slot for line in known] != list(range(len(known))):
            raise StudyError(
                f"generation {number} of the log has gaps, as `mode: async` leaves them: go on in that"
            )
        size = len(known) + self._room(asked.genomes, known)
        blocks = self._blocks(asked)
        if size > len(known):
            self._refuse_gap(number)
            self._host.begin(number, size)
            context = _Context(number, asked, known[0].known if known else self._searched_so_far())
            slots = range(len(known), size)
            if blocks is None or not self._races(asked, len(blocks)):
                known = [*known, *self._at_once(context, slots, blocks)]
            else:
                known = [*known, *self._in_rounds(context, known, slots, blocks)]
            if len(known) == len(asked.genomes):
                self._check(known)
        return known

    def _refuse_gap(self, number: int) -> None:
        """Nothing is added to a generation that others in the log came after: the log is not of this search."""
        if any(line.role == "search" and line.generation > number for line in self._host.log()):
            raise StudyError(
                f"generation {number} of the log is not what this search makes of it: the study was begun "
                "with other versions or another experiment, and cannot go on exactly"
            )

    def _room(self, genomes: Sequence[Genome], known: Sequence[Line]) -> int:
        left = len(genomes) - len(known)
        room = self._host.room(left, begun=bool(known), reserve=self._reserve)
        # Values of a generation in rounds depend on all its candidates: it is whole, or not begun.
        return left if known and self._documents.batch else 0 if self._documents.batch and room < left else room

    def _blocks(self, asked: Generation) -> list[Chosen] | None:
        """The documents of a generation; None for all of them, or those kept apart, at once."""
        if self._documents.batch is None or asked.select:
            return None
        if not self._module.FRESH_DOCUMENTS:
            if self._fixed is None:
                self._fixed = [self._documents.draw(number) for number in range(reliability.BLOCKS)]
            return self._fixed
        count = min(self._pace.blocks * asked.effort, max(self._searched // self._documents.block, 1))
        first, self._next_block = self._next_block, self._next_block + count
        return [self._documents.draw(number) for number in range(first, first + count)]

    @property
    def _reserve(self) -> int:
        """Documents that the end takes: the last looks, and the winner's score."""
        rest = self._searched if self._fidelity.final else 0
        return rest + 2 * self._documents.selecting if self._documents.batch else 0

    @property
    def _searched(self) -> int:
        return self._documents.whole - self._documents.selecting

    def _races(self, asked: Generation, blocks: int) -> bool:
        enough = len(asked.genomes) >= 4 and blocks >= 4
        return self._fidelity.race and self._module.FRESH_DOCUMENTS and enough and not asked.gradient

    def _at_once(self, context: _Context, slots: Iterable[int], blocks: list[Chosen] | None) -> list[Line]:
        """Evaluates slots on the same documents, and logs them in their order as they become known."""
        ready: dict[int, Line] = {}
        waiting = list(slots)
        found = []
        chosen = self._chosen(context.asked, blocks)
        tasks = [Task(slot, context.asked.genomes[slot], chosen, context.asked.gradient) for slot in waiting]
        for slot, answer in self._host.evaluate(tasks):
            ready[slot] = self._line(context, slot, answer, blocks, chosen)
            while waiting and waiting[0] in ready:
                found.append(self._host.keep(ready.pop(waiting.pop(0))))
        return found

    def _chosen(self, asked: Generation, blocks: list[Chosen] | None) -> Chosen | None:
        if blocks is not None:
            return union(blocks)
        return self._documents.select() if asked.select and self._documents.selecting else None

    def _in_rounds(
        self, context: _Context, known: Sequence[Line], slots: Sequence[int], blocks: list[Chosen]
    ) -> list[Line]:
        """Evaluates slots on the first half of the blocks, and those that still matter on the rest, too.

        All are logged at the end: what one comes to depends on the others.
        """
        half = len(blocks) // 2
        found = {line.slot: line for line in known}
        found.update(self._rows(context, slots, blocks[:half]))
        # One that failed on the second half has its blocks of the first, and took part in this choice.
        order = [slot for slot in sorted(found) if found[slot].blocks]
        if order:
            kept = reliability.survivors(np.array([found[slot].blocks[:half] for slot in order]))
            going = [slot for slot, stays in zip(order, kept, strict=True) if stays and slot in slots]
            # The answers to the first half are known by now, and are not asked again.
            for slot, line in self._rows(context, going, blocks).items():
                found[slot] = line if line.value is not None else replace(line, blocks=found[slot].blocks)
        rows = {slot: line.blocks for slot, line in sorted(found.items()) if line.value is not None}
        levelled = dict(zip(rows, reliability.level(list(rows.values())), strict=True)) if rows else {}
        return [self._host.keep(replace(found[slot], value=levelled.get(slot))) for slot in slots]

    def _rows(self, context: _Context, slots: Sequence[int], blocks: list[Chosen]) -> dict[int, Line]:
        chosen = union(blocks)
        tasks = [Task(slot, context.asked.genomes[slot], chosen) for slot in slots]
        return {
            slot: self._line(context, slot, answer, blocks, chosen) for slot, answer in self._host.evaluate(tasks)
        }

    def _line(
        self, context: _Context, slot: int, answer: Answer, blocks: list[Chosen] | None, chosen: Chosen | None
    ) -> Line:
        """A line of the log from an answer."""
        parts: tuple[float, ...] = ()
        value = None if answer.reason else answer.value
        if answer.reason is None and chosen is not None:
            value = self._documents.value(answer.scores)
            if blocks is not None and not context.asked.gradient:
                parts = block_values(self._documents, blocks, answer.scores)
        size = self._documents.whole if chosen is None else sum(map(len, chosen.values()))
        return Line(
            generation=context.number,
            slot=slot,
            genome=context.asked.genomes[slot],
            value=value,
            objectives=_objectives(self._documents, answer),
            blocks=parts,
            whole=chosen is None and not context.asked.gradient,  # its value may be of a smooth stand-in
            known=context.known,
            gradient=answer.gradient,
            documents=size * (BACKWARD if context.asked.gradient else 1),
            reason=answer.reason,
            answer=answer,
        )

    def _learn(self, number: int, asked: Generation, found: list[Line]) -> None:
        """Tells the sampler; not of many that failed together, whose failure was not theirs."""
        if all(line.value is None for line in found):
            self._failures += len(found)
            if self._worst is not None and len(found) < _HOPELESS:
                self._sampler.tell(number, [Result(*self._worst, failed=True)] * len(found))
            return
        self._failures = 0
        self._last = found
        self._since_look += sum(line.documents for line in found)
        longest = max(len(line.blocks) for line in found)
        rows = [line.blocks for line in found if line.blocks and len(line.blocks) == longest]
        if self._module.FRESH_DOCUMENTS and not asked.select and len(rows) > 1 and asked.effort == 1:
            self._pace.see(np.array(rows))
        self._sampler.tell(number, self._results(asked, found))

    def _check(self, found: Sequence[Line]) -> None:
        """Raises StudyError where a generation that is new in the log failed whole, and going on makes no sense."""
        failed = all(line.value is None for line in found)
        if failed and (self._worst is None or self._failures + len(found) >= _HOPELESS):
            _all_failed(found)

    def _results(self, asked: Generation, found: Sequence[Line]) -> list[Result]:
        rows = {
            line.slot: (line.value, line.objectives if self._many else (line.value,))
            for line in found
            if line.value is not None
        }
        worst = _worst(list(rows.values()))
        self._worst = worst if self._worst is None else _worst([worst, self._worst])
        documents = self._of_documents(asked, found) if self._module.WANTS_DOCUMENT_SCORES else {}
        return [
            Result(*worst, failed=True)
            if line.slot not in rows
            else Result(*rows[line.slot], documents.get(line.slot), line.gradient)
            for line in found
        ]

    def _of_documents(self, asked: Generation, found: Sequence[Line]) -> dict[int, np.ndarray]:
        """Slot -> the score of each document; of what comes from the log it is looked up, or asked for again."""
        finished = {line.slot: line for line in found if line.value is not None}
        scores = {slot: line.answer.scores for slot, line in finished.items() if line.answer is not None}
        missing = [line for slot, line in finished.items() if slot not in scores]
        chosen = self._chosen(asked, self._fixed)
        tasks = [Task(line.slot, line.genome, chosen) for line in missing]
        scores.update({slot: _scores(answer) for slot, answer in self._host.evaluate(tasks)})
        names = [entry.name for entry in self._documents.entries]
        return {slot: np.concatenate([one[name] for name in names if name in one]) for slot, one in scores.items()}

    def _too_small(self, size: int) -> str:
        most = f" and {self._reserve} documents for its end" if self._reserve else ""
        return f"the budget is too small: the search takes {size} candidates to begin with{most}; raise it"

    # --- the incumbent ---

    def _time_to_look(self, number: int) -> bool:
        """Whether enough was spent since the last time, or a shorter search, which ended here, has looked."""
        due = self._since_look >= LOOK_AFTER * self._documents.selecting
        return due or any(line.generation == number and line.role == "select" for line in self._host.log())

    def _look(self, number: int, genome: Genome | None = None) -> None:
        """Compares a genome with the incumbent, on the documents kept apart.

        genome: by default what the search holds to be best.
        """
        self._since_look = 0
        logged = [line for line in self._host.log() if line.generation == number and line.role == "select"]
        if logged:
            self._judge(logged[-1])
            return
        genome = genome or self._sampler.recommend() or _best(self._last)
        if genome is None or (self._incumbent is not None and genome == self._incumbent.genome):
            return
        self._refuse_gap(number)
        rival = self._scores_of_incumbent()
        context = _Context(number, Generation([genome], select=True), self._searched_so_far())
        share = min(_FIRST_LOOK / max(self._documents.selecting, 1), 1.0)
        while True:
            chosen = self._documents.select(share)
            ((_, answer),) = self._host.evaluate([Task(0, genome, chosen)])
            line = self._line(context, 0, answer, None, chosen)
            difference = None if rival is None or answer.reason else self._difference(answer.scores, rival, chosen)
            hopeless = answer.reason is not None or (difference is not None and sum(difference) < 0)
            if hopeless or share == 1.0:
                break
            share = min(2 * share, 1.0)
        wins = not hopeless and (difference is None or difference[0] > 0)
        self._judge(self._host.keep(replace(line, role="select", whole=False, incumbent=wins)))

    def _judge(self, line: Line) -> None:
        if line.incumbent:
            self._incumbent = line
            self._incumbent_scores = line.answer.scores if line.answer is not None else None

    def _scores_of_incumbent(self) -> Mapping[str, np.ndarray] | None:
        if self._incumbent is not None and self._incumbent_scores is None:  # it comes from the log
            ((_, answer),) = self._host.evaluate([Task(0, self._incumbent.genome, self._documents.select())])
            self._incumbent_scores = _scores(answer)
        return self._incumbent_scores

    def _difference(
        self, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], chosen: Chosen
    ) -> tuple[float, float]:
        """The paired difference of the values, and two of its standard errors."""
        every = self._documents.select()
        apart = {}
        for name, ids in chosen.items():
            places = np.searchsorted(every[name], ids)
            apart[name] = ours[name] - theirs[name][places]
        shares = {entry.name: entry.share for entry in self._documents.entries if entry.name in apart}
        total = sum(shares.values())
        spread = sum((shares[n] / total) ** 2 * v.var() / len(v) for n, v in apart.items())
        return self._documents.value(apart), 2 * float(np.sqrt(spread))

    def _finish(self, number: int) -> None:
        """The last look; then the winner on all documents, for the tables."""
        if not self._documents.batch or not self._last:
            return
        if self._documents.selecting:
            self._look(number)
            # A search that begins elsewhere may end below a point that was known before it, a lone expert say.
            known = [line for line in self._host.log() if line.generation == 0 and line.role == "search"]
            if (best := _best(known)) is not None:
                self._look(number + 1, best)
            genome = None if self._incumbent is None else self._incumbent.genome
        else:
            genome = self._sampler.recommend() or _best(self._last)
        if (
            not self._fidelity.final
            or genome is None
            or any(line.generation == number and line.role == "final" for line in self._host.log())
        ):
            return
        context = _Context(number, Generation([genome]), self._searched_so_far())
        ((_, answer),) = self._host.evaluate([Task(0, genome, None)])
        line = self._line(context, 0, answer, None, None)
        spent = max(line.documents - self._documents.selecting, 0)
        self._host.keep(replace(line, role="final", incumbent=answer.reason is None, documents=spent))

    # --- without waiting ---

    def run_async(self) -> None:
        """Goes on until the budget is spent; a free worker never waits for a generation's last candidate.

        Candidates are ranked within the generation that they were asked for in; results enter in the order in which
        they come, which the log keeps. What the log holds is replayed in that order.
        """
        self._open: dict[int, _Context] = {}
        self._lines: dict[int, dict[int, Line]] = {}
        self._block_of: dict[int, list[Chosen] | None] = {}
        self._count = 0
        pending = self._replay()
        keys: dict[int, tuple[int, int]] = {}
        for key, answer in self._host.evaluate(self._stream(pending, keys)):
            number, slot = keys.pop(key)
            context, blocks = self._open[number], self._block_of[number]
            line = self._line(context, slot, answer, blocks, self._chosen(context.asked, blocks))
            self._enter(self._host.keep(line), new=True)
        if not self._host.log():
            raise StudyError(self._too_small(1))
        self._finish(self._count)

    def _replay(self) -> list[tuple[int, int]]:
        """Asks and tells in the order of the log.

        Returns: what was asked for and has no result, (generation, slot).
        """
        log = [line for line in self._host.log() if line.role == "search"]
        asked_at: dict[int, int] = {}
        for line in log:
            asked_at[line.generation] = line.known
        last = max(asked_at, default=-1)
        for number in range(last, -1, -1):  # nothing came of some: they are asked with the next that something did
            asked_at.setdefault(number, asked_at.get(number + 1, 0))
        waiting = list(range(last + 1))
        for position in range(len(log) + 1):
            while waiting and asked_at[waiting[0]] <= position:
                self._ask(waiting.pop(0), asked_at[self._count])
            if position < len(log):
                line = log[position]
                _same([line], self._open[line.generation].asked.genomes if line.generation in self._open else [])
                self._enter(line)
        return [
            (number, slot)
            for number, context in self._open.items()
            for slot in range(len(context.asked.genomes))
            if slot not in self._lines[number]
        ]

    def _ask(self, number: int, known: int) -> bool:
        asked = self._sampler.ask(number)
        if not asked.genomes:
            return False
        self._open[number] = _Context(number, asked, known)
        self._lines[number] = {}
        self._next_block = number * _ASYNC_STRIDE
        self._block_of[number] = self._blocks(asked)
        self._count = number + 1
        return True

    def _stream(self, pending: list[tuple[int, int]], keys: dict[int, tuple[int, int]]) -> Iterator[Task | None]:
        """Tasks as workers become free for them. keys: of the tasks under way, (generation, slot)."""
        for key in itertools.count():
            while not pending:
                if not self._has_room(len(keys)):
                    return
                pending = self._next()
                if not pending:
                    if not keys:
                        raise StudyError("the sampler waits, but nothing is under way")
                    yield None
            if not self._has_room(len(keys)):
                return
            number, slot = keys[key] = pending.pop(0)
            context = self._open[number]
            chosen = self._chosen(context.asked, self._block_of[number])
            yield Task(key, context.asked.genomes[slot], chosen, context.asked.gradient)

    def _next(self) -> list[tuple[int, int]]:
        """The slots of a new generation; none where the sampler has to wait."""
        number = self._count
        if not self._ask(number, self._searched_so_far()):
            return []
        size = len(self._open[number].asked.genomes)
        self._host.begin(number, size)
        return [(number, slot) for slot in range(size)]

    def _has_room(self, under_way: int) -> bool:
        return self._host.room(under_way + 1, begun=False, reserve=self._reserve) > under_way

    def _searched_so_far(self) -> int:
        return sum(line.role == "search" for line in self._host.log())

    def _enter(self, line: Line, *, new: bool = False) -> None:
        """Takes a result in; tells the sampler of a generation that is complete.

        Raises:
            StudyError: that failed whole, and the result is new.
        """
        lines = self._lines[line.generation]
        lines[line.slot] = line
        context = self._open[line.generation]
        if len(lines) < len(context.asked.genomes):
            return
        found = [lines[slot] for slot in sorted(lines)]
        del self._open[line.generation], self._lines[line.generation], self._block_of[line.generation]
        if new:
            self._check(found)
        self._learn(line.generation, context.asked, found)


@dataclass(frozen=True)
class _Context:
    """A generation under way. known: search lines in the log when it was asked for."""

    number: int
    asked: Generation
    known: int


def _same(known: Sequence[Line], genomes: Sequence[Genome]) -> None:
    """Checks that the log holds what the sampler proposes."""
    for line in known:
        if line.slot >= len(genomes) or line.genome != genomes[line.slot]:
            raise StudyError(
                f"candidate {line.slot} of generation {line.generation} is not what this sampler proposes: "
                "the study was begun with other versions or another experiment (the order of its keys counts), and "
                "cannot go on exactly"
            )


def _worst(rows: Sequence[tuple[float, tuple[float, ...]]]) -> tuple[float, tuple[float, ...]]:
    """The lowest value, and the lowest of each objective."""
    objectives = [row for _, row in rows if len(row) == len(rows[0][1])]
    return min(value for value, _ in rows), tuple(min(column) for column in zip(*objectives, strict=True))


def _scores(answer: Answer) -> Mapping[str, np.ndarray]:
    """The scores of what could be scored before.

    Raises:
        StudyError: this time it could not.
    """
    if answer.reason is not None:
        raise StudyError(f"a candidate in the log cannot be scored again: {answer.reason}")
    return answer.scores


def _all_failed(lines: Sequence[Line]) -> None:
    reasons = sorted({line.reason or "" for line in lines})
    raise StudyError(
        f"all {len(lines)} candidates of generation {lines[0].generation} failed:\n"
        + "\n".join(f"  {one}" for one in reasons[:3])
    )


def _best(lines: Sequence[Line]) -> Genome | None:
    finished = [line for line in lines if line.value is not None]
    return max(finished, key=lambda line: (line.value, -line.slot)).genome if finished else None


def _objectives(documents: Documents, answer: Answer) -> tuple[float, ...]:
    return tuple(
        float(answer.scores[entry.name].mean()) for entry in documents.entries if entry.name in answer.scores
    )
