"""The second phase of a study with training operators: the best of the search are trained.

Training moves scores by more than the search's candidates differ among themselves, and draws them together, so
what is trained is never ranked with what is not. Beside each other stand, all scored on all search documents: the
parents as they are, the elites before training, the elites after it, and the control, the best parent after the
same training. A gain over the control is the merge's; the rest is the training's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

from evomerge.recipes.recipe import Recipe, parent_recipe
from evomerge.searching.host import Role
from evomerge.searching.spaces.decoding import LaidOut
from evomerge.searching.spaces.genes import Genome, initial
from evomerge.searching.spaces.operator_genes import Operator
from evomerge.studies.trials import Trial, elite_trials


@dataclass(frozen=True)
class Member:
    """A model of the second phase; see `trials.Trial` for the attributes."""

    role: Role
    genome: Genome = field(default_factory=dict)
    parent: str = ""

    def same(self, trial: Trial) -> bool:
        """Whether a trial is of this model."""
        return (trial.role, trial.genome, trial.parent) == (self.role, self.genome, self.parent)


def member_recipe(laid: LaidOut, operators: Sequence[Operator], member: Member | Trial) -> Recipe:
    """The recipe of a trial, or of a member.

    Args:
        operators: those of the second phase.
    """
    recipe = laid.decode(member.genome or initial(laid.coordinates))
    merged = parent_recipe(recipe, member.parent) if member.role in ("parent", "control") else recipe
    trained = [operator.step() for operator in operators] if member.role in ("trained", "control") else []
    return merged.model_copy(update={"operators": (*recipe.operators, *trained)})


def untrained(laid: LaidOut, operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Member]:
    """The parents and the elites as they are: what the second phase needs to know first."""
    chosen = _elites(operators, trials)
    genome = _acting(laid, chosen)
    return [
        *(Member("parent", genome, parent=name) for name in ("base", *sorted(laid.common.experts))),
        *(Member("elite", trial.genome) for trial in chosen),
    ]


def trained(laid: LaidOut, operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Member]:
    """The elites after training, and the control; none of what failed untrained."""
    chosen = _elites(operators, trials)
    recipes, genome = {trial.recipe for trial in chosen}, _acting(laid, chosen)
    ready = [t for t in trials if t.role == "elite" and t.recipe in recipes and t.value is not None]
    found = [Member("trained", trial.genome) for trial in ready]
    parent = best_parent([trial for trial in trials if trial.genome == genome])
    if ready and parent is not None:
        found.append(Member("control", genome, parent=parent.parent))
    return found


def warnings(experts: Iterable[str], operators: Sequence[Operator], trials: Sequence[Trial]) -> list[str]:
    """What can be said of a second phase by its trials."""
    by_role = {role: [trial for trial in trials if trial.role == role] for role in get_args(Role)}
    found = []
    if pending(experts, operators, trials):
        found.append("the second phase is not finished: `evomerge resume` goes on with it")
    if failed := [trial for trial in (*by_role["trained"], *by_role["control"]) if trial.value is None]:
        found.append(f"{len(failed)} trainings failed, the first by: {failed[0].reason}")
    best = max((t for t in by_role["trained"] if t.value is not None), key=lambda t: t.value or 0.0, default=None)
    if best is None:
        return found
    same = before(best, trials)
    if same is not None and (same.value or 0.0) > (best.value or 0.0):
        found.append(
            f"training made the best candidate no better ({same.value:.4f} before, {best.value:.4f} after); "
            f"trial {same.number} is the same merge untrained"
        )
    control = max((t.value for t in by_role["control"] if t.value is not None), default=-math.inf)
    if control >= (best.value or 0.0):
        found.append(
            f"a parent after the same training is no worse ({control:.4f}) than the best candidate "
            f"({best.value:.4f}): what is gained is the training's, not the merge's"
        )
    return found


def pending(experts: Iterable[str], operators: Sequence[Operator], trials: Sequence[Trial]) -> bool:
    """Whether a second phase is begun and not at its end, as far as its trials tell."""
    if not any(operator.training for operator in operators):
        return False
    roles = [trial.role for trial in trials]
    ready = [trial for trial in trials if trial.role == "elite" and trial.value is not None]
    parents = roles.count("parent")
    whole = roles.count("trained") >= len(ready) and ("control" in roles or not ready)
    return parents > 0 and not (parents > len(list(experts)) and "elite" in roles and whole)


def _acting(laid: LaidOut, chosen: Sequence[Trial]) -> Genome:
    """The genome whose operators act on parents and control: the first elite's; {} where none act on all."""
    return dict(chosen[0].genome) if laid.common.operators and chosen else {}


def before(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """What was trained to a trial: the elite, or the control's parent; None if it has not been scored."""
    untrained = Member("parent" if trial.parent else "elite", trial.genome, trial.parent)
    return next((one for one in trials if untrained.same(one) and one.value is not None), None)


def best_parent(trials: Sequence[Trial]) -> Trial | None:
    """The parent of highest value, the earliest of equals; None if none was scored."""
    parents = [trial for trial in trials if trial.role == "parent" and trial.value is not None]
    return max(parents, key=lambda trial: trial.value or 0.0, default=None)


def _elites(operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Trial]:
    when = operators[0].elites
    return elite_trials(trials, when.top, when.min)
