"""Is the gain real? Scores the winner, its parents and the uniform average on documents that the search never saw.

The winner was chosen without these documents, so its hold-out score is unbiased. The best parent is chosen on them,
which favours the parent. The reported metrics are compared, weighted as the hold-out entries say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evomerge.errors import CandidateError, ConfigError
from evomerge.files import writing
from evomerge.models import Progress
from evomerge.recipes.recipe import COMMON_KEYS, Recipe, parent_recipe
from evomerge.results.paired_test import Paired, p_text, paired
from evomerge.results.truncation import truncation_warnings
from evomerge.scoring.fitness import Entry
from evomerge.scoring.measured import document_scores
from evomerge.searching.objective import Objective
from evomerge.studies import journal
from evomerge.studies.candidates.operating import trains
from evomerge.studies.candidates.score import Score, objective_of
from evomerge.studies.folder import CERTIFICATE
from evomerge.studies.plan import Plan, trained_files
from evomerge.studies.workers.jobs import Job, Pool
from evomerge.studies.workers.opening import open_pool


@dataclass(frozen=True)
class Row:
    """One model on the hold-out documents.

    Attributes:
        name: what the model is called in tables.
        tasks: entry -> its reported metric.
        mean: the mean of these metrics, weighted as the entries say.
        against: the winner's paired gain over this model; None for the winner itself.
    """

    name: str
    tasks: dict[str, float]
    mean: float
    against: Paired | None


@dataclass(frozen=True)
class Certificate:
    """All models on the hold-out documents, the winner last.

    Attributes:
        rows: one for each model.
        documents: the number of hold-out documents.
        best_parent: the name of the base or expert with the highest hold-out mean.
        warnings: causes besides skill that the differences may have, a sentence each.
    """

    rows: tuple[Row, ...]
    documents: int
    best_parent: str
    warnings: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One sentence: whether the winner beats its best parent."""
        paired = next(row.against for row in self.rows if row.name == self.best_parent)
        assert paired is not None
        what = f"On {self.documents} hold-out documents the winner gains {paired.gain:+.3f} over the best parent"
        span = f"95 % interval {paired.low:+.3f} to {paired.high:+.3f}, p {p_text(paired.p)}"
        ends = {
            "better": "the gain is real",
            "worse": "the winner is worse",
            "within noise": "that is within noise: no gain is shown",
        }
        return f"{what}, {self.best_parent} ({span}): {ends[paired.verdict]}."


def contestants(plan: Plan, winner: Recipe, control: str | None = None) -> dict[str, Recipe]:
    """Name -> recipe of the models to compare, the winner last: the base, each expert, and the uniform average.

    With a winner that was trained, the winner before training and a parent after the same training are compared as
    well.

    Args:
        control: that parent: the name of an expert, or `base`; None leaves it out.
    """
    recipes = {"base": parent_recipe(winner, "base")}
    for expert in plan.laid.common.experts:
        recipes[f"expert {expert}"] = parent_recipe(winner, expert)
    uniform = {"method": "linear", "parameters": {"weight": 1.0}}
    recipes["uniform average"] = Recipe.model_validate(
        {**recipes["base"].model_dump(include=COMMON_KEYS), **uniform}
    )
    pure = tuple(step for step in winner.operators if not trains(step))
    if pure != winner.operators:
        recipes["winner untrained"] = winner.model_copy(update={"operators": pure})
        if control is not None:
            parent = parent_recipe(winner, control)
            recipes[f"{_named(control)} trained alike"] = parent.model_copy(update={"operators": winner.operators})
    recipes["winner"] = winner
    return recipes


def _named(parent: str) -> str:
    """What a parent is called in tables."""
    return parent if parent == "base" else f"expert {parent}"


def certify(plan: Plan, winner: Recipe, pool: Pool) -> Certificate:
    """Scores all contestants on the hold-out documents and compares them.

    Args:
        plan: the study's experiment, laid over its models.
        winner: the recipe to certify.
        pool: workers that score the hold-out tasks.

    Raises:
        ConfigError: the fitness has no hold-out.
        CandidateError: a contestant could not be scored.
    """
    entries = plan.experiment.fitness.holdout
    if not entries:
        raise ConfigError("fitness", ["holdout: lists no task, so no gain can be confirmed; add some"])
    scores = _scores(contestants(plan, winner, _control(plan)), pool)
    first = scores["winner"]
    objective = _objective(entries, first)
    rows = tuple(
        Row(
            name=name,
            tasks=score.measured.tasks,
            mean=objective.of_entries(score.measured.tasks),
            against=None if name == "winner" else against(entries, first, score),
        )
        for name, score in scores.items()
    )
    own = {"base", *(f"expert {name}" for name in plan.laid.common.experts)}
    others = {name: score.report.truncated for name, score in scores.items() if name != "winner"}
    return Certificate(
        rows=rows,
        documents=objective.documents,
        best_parent=max((row for row in rows if row.name in own), key=lambda row: row.mean).name,
        warnings=truncation_warnings("the winner", first.report, others),
    )


def _scores(recipes: Mapping[str, Recipe], pool: Pool) -> dict[str, Score]:
    """Name -> score of each recipe, in their order.

    Raises:
        CandidateError: a recipe could not be scored.
    """
    names = list(recipes)
    scores: dict[str, Score] = {}
    for outcome in pool.run([Job(key, recipes[name]) for key, name in enumerate(names)]):
        if outcome.score is None:
            raise CandidateError(f"{names[outcome.key]} could not be scored: {outcome.reason}")
        scores[names[outcome.key]] = outcome.score
    return {name: scores[name] for name in names}


def _objective(entries: Sequence[Entry], score: Score) -> Objective:
    """The weighted mean over some entries, bound to the documents that were scored."""
    sizes = {name: len(task.documents) for name, task in score.report.tasks.items()}
    return objective_of(entries, score.groups, sizes)


def against(entries: Sequence[Entry], ours: Score, theirs: Score) -> Paired:
    """Tests the gain of one model over another in the reported metrics, paired by the documents of some entries."""
    first, second = (document_scores(one.report, ours.groups, reported=True) for one in (ours, theirs))
    shares = _objective(entries, ours).shares
    return paired([first[name] - second[name] for name in shares], list(shares.values()))


def _control(plan: Plan) -> str | None:
    """The parent that the study's second phase trained beside the elites; None if there was none."""
    trials = journal.read_trials(plan.folder) if plan.training else []
    return next((trial.parent for trial in trials[::-1] if trial.role == "control"), None)


def certify_winner(plan: Plan, winner: Recipe, progress: Progress = lambda text: None) -> Certificate:
    """Certifies the winner of a study on new workers, and writes the result to STUDY/certificate.json.

    Raises:
        EvomergeError: workers cannot be set up, or for the reasons of `certify`.
    """
    progress("starting workers for the hold-out tasks")
    trained = trained_files(plan, journal.read_trials(plan.folder)) if plan.training else {}
    pool = open_pool(plan.experiment.workers, replace(plan.setup(holdout=True), trained=trained))
    try:
        certificate = certify(plan, winner, pool)
    finally:
        pool.close()
    text = json.dumps({"recipe": winner.sha256, **as_json(certificate)}, indent=2)
    writing.write_text(plan.folder / CERTIFICATE, text + "\n")
    return certificate


def as_json(certificate: Certificate) -> dict[str, object]:
    """The certificate as plain values."""

    def row(one: Row) -> dict[str, object]:
        against: Mapping[str, object] | None = None
        if one.against is not None:
            against = {**vars(one.against), "verdict": one.against.verdict}
        return {"name": one.name, "tasks": one.tasks, "mean": one.mean, "winner_minus_this": against}

    return {
        "models": [row(one) for one in certificate.rows],
        "documents": certificate.documents,
        "best_parent": certificate.best_parent,
        "verdict": certificate.verdict,
        "warnings": list(certificate.warnings),
    }
