"""Runs the second phase of a study: scores the parents and the elites, then trains the elites and the control.

`second_phase.py` says which models these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evomerge.recipes.recipe import Recipe
from evomerge.studies import second_phase
from evomerge.studies.evaluator import Evaluator
from evomerge.studies.log import Log, with_score
from evomerge.studies.observer import Observer
from evomerge.studies.plan import Plan
from evomerge.studies.second_phase import Member
from evomerge.studies.trials import Trial
from evomerge.studies.workers.jobs import Outcome


def train(plan: Plan, log: Log, evaluator: Evaluator, observer: Observer) -> None:
    """Runs the second phase, or the rest of it that the log does not have yet.

    Raises:
        KeyboardInterrupt: the person wants the study to stop.
        StudyError: the log cannot be written.
    """
    for members in (second_phase.untrained, second_phase.trained):
        _evaluate(plan, log, evaluator, observer, members(plan.laid, plan.training, log.trials))


def _evaluate(plan: Plan, log: Log, evaluator: Evaluator, observer: Observer, members: Sequence[Member]) -> None:
    """Evaluates the members that are not in the log yet, and logs them in their order."""
    waiting = [slot for slot, member in enumerate(members) if not any(map(member.same, log.trials))]
    if not waiting:
        return
    generation = 1 + max(trial.generation for trial in log.searched)
    observer.generation(generation, len(waiting))
    recipes = {slot: second_phase.member_recipe(plan.laid, plan.training, members[slot]) for slot in waiting}
    ready: dict[int, Outcome] = {}
    for outcome in evaluator.score_whole(recipes):
        ready[outcome.key] = outcome
        while waiting and waiting[0] in ready:
            slot = waiting.pop(0)
            trial = _trial(log, members[slot], recipes[slot], ready.pop(slot), (generation, slot))
            log.add(trial)
            observer.trial(trial)


def _trial(log: Log, member: Member, recipe: Recipe, outcome: Outcome, place: tuple[int, int]) -> Trial:
    """The trial of a member. place: its generation and slot."""
    score = outcome.score
    trial = log.new(
        generation=place[0],
        slot=place[1],
        genome=member.genome,
        recipe=recipe.sha256,
        value=None if score is None else score.value,
        reason=outcome.reason,
        role=member.role,
        parent=member.parent,
    )
    if score is None:
        return trial
    trial = replace(with_score(trial, score), training_records=score.training_records)
    if recipe.sha256 in log.scored:
        return trial
    documents = sum(len(task.documents) for task in score.report.tasks.values())
    return replace(trial, seconds=score.seconds, tokens=score.report.tokens, documents=documents)
