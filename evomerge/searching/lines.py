"""Lines of the log: how an evaluation becomes a line, and how a search checks the lines that the log has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.errors import StudyError
from evomerge.searching.documents import Chosen, block_values
from evomerge.searching.host import Evaluation, Line
from evomerge.searching.objective import Objective
from evomerge.searching.samplers import Generation
from evomerge.searching.spaces.genes import Genome

# Document evaluations that a document with its gradient counts as: a backward pass is worth two forward passes.
BACKWARD = 3


@dataclass(frozen=True)
class Context:
    """A generation under way.

    Attributes:
        number: the generation's number, from 0.
        asked: the genomes that are to be evaluated, with the sampler's wishes for them.
        log_length: how many search candidates the log held when the generation was asked for.
    """

    number: int
    asked: Generation
    log_length: int


def line_of(
    objective: Objective,
    context: Context,
    slot: int,
    evaluation: Evaluation,
    *,
    blocks: list[Chosen] | None = None,
    chosen: Chosen | None = None,
) -> Line:
    """The line of the log that an evaluation makes.

    Args:
        context: the generation of the candidate.
        slot: the candidate's place in it.
        blocks: the blocks of documents that the candidate was scored on; None where it was not scored in blocks.
        chosen: the documents that the candidate was scored on; None for all.
    """
    gradient = context.asked.gradient
    shares = None if chosen is None else chosen.shares
    value: float | None = None
    values: tuple[float, ...] = ()
    if evaluation.reason is None:
        value = evaluation.value if shares is None else objective.value(evaluation.scores, shares)
        if blocks is not None and not gradient:
            values = block_values(objective, blocks, evaluation.scores)
    size = objective.documents if chosen is None else chosen.documents
    return Line(
        generation=context.number,
        slot=slot,
        genome=context.asked.genomes[slot],
        value=value,
        objectives=objective.means(evaluation.scores, shares),
        blocks=values,
        all_documents=chosen is None and not gradient,  # with a gradient the value may be of a smooth stand-in
        log_length_when_asked=context.log_length,
        gradient=evaluation.gradient,
        documents=size * (BACKWARD if gradient else 1),
        reason=evaluation.reason,
        evaluation=evaluation,
    )


def searched(log: Sequence[Line]) -> list[Line]:
    """The lines of the candidates that the sampler asked for: those of the role `search`."""
    return [line for line in log if line.role == "search"]


def best_genome(lines: Sequence[Line]) -> Genome | None:
    """The genome of the highest value, that of the lowest slot among equals; None if all failed."""
    finished = [line for line in lines if line.value is not None]
    return max(finished, key=lambda line: (line.value, -line.slot)).genome if finished else None


def check_proposals(known: Sequence[Line], genomes: Sequence[Genome]) -> None:
    """Checks that the log holds what the sampler proposes for a generation.

    Args:
        known: lines of the generation in the log.
        genomes: what the sampler proposes.

    Raises:
        StudyError: a line of the log has another genome.
    """
    for line in known:
        if line.slot >= len(genomes) or line.genome != genomes[line.slot]:
            raise StudyError(
                f"candidate {line.slot} of generation {line.generation} is not what this sampler proposes: "
                "the study was begun with other versions or another experiment (the order of its keys counts), and "
                "cannot go on exactly"
            )


def check_nothing_after(log: Sequence[Line], number: int) -> None:
    """Checks that the log has no later generation than the one to which a line is to be added.

    Raises:
        StudyError: it has one, so that the log belongs to another search.
    """
    if any(line.generation > number for line in searched(log)):
        raise StudyError(
            f"generation {number} of the log is not what this search makes of it: the study was begun "
            "with other versions or another experiment, and cannot go on exactly"
        )


def failed_whole(lines: Sequence[Line], which: str = "") -> StudyError:
    """The error that says why every candidate failed, with at most three reasons.

    Args:
        lines: at least one line, all failed.
        which: names the candidates; by default it is the candidates of the first line's generation.
    """
    reasons = sorted({line.reason or "" for line in lines})
    which = which or f"all {len(lines)} candidates of generation {lines[0].generation}"
    return StudyError(f"{which} failed:\n" + "\n".join(f"  {reason}" for reason in reasons[:3]))


def scores_again(evaluation: Evaluation) -> Evaluation:
    """Returns the new evaluation of a genome that the log has a score of.

    Raises:
        StudyError: this time the evaluation failed.
    """
    if evaluation.reason is not None:
        raise StudyError(f"a candidate in the log cannot be scored again: {evaluation.reason}")
    return evaluation
