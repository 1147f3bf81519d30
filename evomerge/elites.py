"""The second phase of a study with training operators: the best of the search are trained.

Training moves scores by more than the search's candidates differ among themselves, and draws them together, so
what is trained is never ranked with what is not. Beside each other stand, all scored on all search documents: the
parents as they are, the elites before training, the elites after it, and the control, the best parent after the
same training. A gain over the control is the merge's; the rest is the training's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from evomerge import records
from evomerge.candidate import parent_recipe
from evomerge.genes import Genome, initial
from evomerge.mutation import Operator
from evomerge.recipe import Recipe
from evomerge.records import Role, Trial
from evomerge.space import Frame, SearchSpace, coordinates, decode


@dataclass(frozen=True)
class Member:
    """A model of the second phase; see `records.Trial` for the attributes."""

    role: Role
    genome: Genome = field(default_factory=dict)
    of: str = ""

    def same(self, trial: Trial) -> bool:
        """Whether a trial is of this model."""
        return (trial.role, trial.genome, trial.of) == (self.role, self.genome, self.of)


def recipe(space: SearchSpace, frame: Frame, operators: Sequence[Operator], member: Member | Trial) -> Recipe:
    """The recipe of a trial, or of a member.

    Args:
        operators: those of the second phase.
    """
    if member.role == "parent":
        return parent_recipe(decode(space, frame, initial(coordinates(space, frame))), member.of)
    found = decode(space, frame, member.genome)
    if member.role not in ("trained", "control"):
        return found
    steps = (*found.operators, *(operator.step() for operator in operators))
    merged = parent_recipe(found, member.of) if member.role == "control" else found
    return merged.model_copy(update={"operators": steps})


def untrained(frame: Frame, operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Member]:
    """The parents and the elites as they are: what the second phase needs to know first."""
    chosen = _elites(operators, trials)
    return [
        *(Member("parent", of=name) for name in ("base", *sorted(frame.experts))),
        *(Member("elite", trial.genome) for trial in chosen),
    ]


def trained(operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Member]:
    """The elites after training, and the control; none of what failed untrained."""
    chosen = {trial.recipe for trial in _elites(operators, trials)}
    elites = [
        trial for trial in trials if trial.role == "elite" and trial.recipe in chosen and trial.value is not None
    ]
    found = [Member("trained", trial.genome) for trial in elites]
    parent = best_parent(trials)
    if elites and parent is not None:
        first = max(elites, key=lambda trial: trial.value or 0.0)
        found.append(Member("control", first.genome, of=parent.of))
    return found


def best_parent(trials: Sequence[Trial]) -> Trial | None:
    """The parent of highest value, the earliest of equals; None if none was scored."""
    parents = [trial for trial in trials if trial.role == "parent" and trial.value is not None]
    return max(parents, key=lambda trial: trial.value or 0.0, default=None)


def _elites(operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Trial]:
    when = operators[0].elites
    return records.elites(trials, when.top, when.min)
