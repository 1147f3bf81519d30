"""The second phase of a study with training operators: the best of the search are trained.

Training moves scores by more than the search's candidates differ among themselves, and draws them together, so
trained candidates are never ranked with untrained ones. Four groups are compared, all on all search documents:
the parents as they are, the elites before training, the elites after training, and the control, which is the best
parent after the same training. The gain over the control comes from the merge; the rest comes from the training.

This module says which models belong to the phase; `training.py` evaluates them.
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
    """A model of the second phase. Its attributes mean what those of `trials.Trial` mean."""

    role: Role
    genome: Genome = field(default_factory=dict)
    parent: str = ""

    def same(self, trial: Trial) -> bool:
        """Whether a trial is the evaluation of this model."""
        return (trial.role, trial.genome, trial.parent) == (self.role, self.genome, self.parent)


def member_recipe(laid: LaidOut, operators: Sequence[Operator], member: Member | Trial) -> Recipe:
    """The recipe of a trial or of a member of the second phase.

    Args:
        operators: the operators of the second phase.
    """
    recipe = laid.decode(member.genome or initial(laid.coordinates))
    merged = parent_recipe(recipe, member.parent) if member.role in ("parent", "control") else recipe
    trained = [operator.step() for operator in operators] if member.role in ("trained", "control") else []
    return merged.model_copy(update={"operators": (*recipe.operators, *trained)})


def untrained(laid: LaidOut, operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Member]:
    """The models that the second phase scores first: the parents and the elites, without training."""
    chosen = _elites(operators, trials)
    genome = _acting(laid, chosen)
    return [
        *(Member("parent", genome, parent=name) for name in ("base", *sorted(laid.common.experts))),
        *(Member("elite", trial.genome) for trial in chosen),
    ]


def trained(laid: LaidOut, operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Member]:
    """The models that the second phase trains: the elites that did not fail before, and the best parent."""
    chosen = _elites(operators, trials)
    recipes, genome = {trial.recipe for trial in chosen}, _acting(laid, chosen)
    ready = [t for t in trials if t.role == "elite" and t.recipe in recipes and t.value is not None]
    members = [Member("trained", trial.genome) for trial in ready]
    parent = best_parent([trial for trial in trials if trial.genome == genome])
    if ready and parent is not None:
        members.append(Member("control", genome, parent=parent.parent))
    return members


def warnings(experts: Iterable[str], operators: Sequence[Operator], trials: Sequence[Trial]) -> list[str]:
    """Warnings about a second phase from its trials, a sentence each."""
    by_role = {role: [trial for trial in trials if trial.role == role] for role in get_args(Role)}
    sentences = []
    if pending(experts, operators, trials):
        sentences.append("the second phase is not finished: `evomerge resume` goes on with it")
    if failed := [trial for trial in (*by_role["trained"], *by_role["control"]) if trial.value is None]:
        sentences.append(f"{len(failed)} trainings failed, the first by: {failed[0].reason}")
    best = max((t for t in by_role["trained"] if t.value is not None), key=lambda t: t.value or 0.0, default=None)
    if best is None:
        return sentences
    same = before_training(best, trials)
    if same is not None and (same.value or 0.0) > (best.value or 0.0):
        sentences.append(
            f"training made the best candidate no better ({same.value:.4f} before, {best.value:.4f} after); "
            f"trial {same.number} is the same merge untrained"
        )
    control = max((t.value for t in by_role["control"] if t.value is not None), default=-math.inf)
    if control >= (best.value or 0.0):
        sentences.append(
            f"a parent after the same training is no worse ({control:.4f}) than the best candidate "
            f"({best.value:.4f}): what is gained is the training's, not the merge's"
        )
    return sentences


def pending(experts: Iterable[str], operators: Sequence[Operator], trials: Sequence[Trial]) -> bool:
    """Whether a second phase has begun and is not finished, as far as its trials tell.

    Args:
        experts: the experts' names.
        operators: all operators of the experiment.
        trials: all trials of the study.
    """
    if not any(operator.training for operator in operators):
        return False
    roles = [trial.role for trial in trials]
    ready = [trial for trial in trials if trial.role == "elite" and trial.value is not None]
    parents = roles.count("parent")
    whole = roles.count("trained") >= len(ready) and ("control" in roles or not ready)
    return parents > 0 and not (parents > len(list(experts)) and "elite" in roles and whole)


def _acting(laid: LaidOut, chosen: Sequence[Trial]) -> Genome:
    """The genome whose operators act on the parents and the control: that of the best elite.

    {} where no operator acts on every candidate, or there is no elite.
    """
    return dict(chosen[0].genome) if laid.common.operators and chosen else {}


def before_training(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """The trial of the same model before training: an elite, or the control's parent; None if it has no score."""
    untrained = Member("parent" if trial.parent else "elite", trial.genome, trial.parent)
    return next((one for one in trials if untrained.same(one) and one.value is not None), None)


def best_parent(trials: Sequence[Trial]) -> Trial | None:
    """The parent of highest value, the earliest of equals; None if none was scored."""
    parents = [trial for trial in trials if trial.role == "parent" and trial.value is not None]
    return max(parents, key=lambda trial: trial.value or 0.0, default=None)


def _elites(operators: Sequence[Operator], trials: Sequence[Trial]) -> list[Trial]:
    """The trials of the search that are trained, as the operators' `when` says."""
    when = operators[0].elites
    return elite_trials(trials, when.top, when.min)
