"""Is the gain real? Scores the winner, its parents and the uniform average on documents that the search never saw.

Differences are paired by document: the test is a sign-flip permutation test, the interval a bootstrap, both
stratified by task (Noreen 1989; Efron and Tibshirani 1993, ch. 13 and 15). The winner was chosen without these
documents, so its hold-out score is unbiased; the best parent is chosen on them, which favours the parent.

An answer cut off at its greatest length is mostly wrong, so a model may gain by shorter answers alone. Where models
differ in how many of their answers were cut off, by Fisher's exact test (1935), a warning says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.errors import CandidateError, ConfigError
from evomerge.files import writing
from evomerge.models.survey import Progress
from evomerge.recipes.recipe import FRAME, Recipe, parent_recipe
from evomerge.scoring.fitness import Entry
from evomerge.scoring.reports import Report
from evomerge.studies import journal
from evomerge.studies.candidates.operating import trains
from evomerge.studies.candidates.workbench import Score
from evomerge.studies.plan import Plan, trained_files
from evomerge.studies.workers.jobs import Job, Pool
from evomerge.studies.workers.opening import open_pool

CERTIFICATE = "certificate.json"  # in the study's folder


RESAMPLES = 10_000


LEVEL = 0.05


NOTICEABLE = 0.01  # of the answers: a smaller difference in truncation is passed over


_CHUNK = 500  # resamples at once


@dataclass(frozen=True)
class Paired:
    """The winner's mean hold-out score minus another model's, over the same documents.

    Attributes:
        gain: the difference; low, high: its 95 % bootstrap interval.
        p: two-sided, of the sign-flip permutation test.
    """

    gain: float
    low: float
    high: float
    p: float

    @property
    def verdict(self) -> str:
        """In words: better, worse or within noise."""
        if self.p >= LEVEL:
            return "within noise"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class Row:
    """One model on the hold-out documents; `against` is None for the winner itself."""

    name: str
    tasks: dict[str, float]
    mean: float
    against: Paired | None


@dataclass(frozen=True)
class Certificate:
    """All models on the hold-out documents, the winner last.

    Attributes:
        documents: how many hold-out documents there are.
        best_parent: of base and experts, the one of the highest hold-out mean.
        warnings: what besides skill may make the difference, a sentence each.
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


def p_text(p: float) -> str:
    """A p-value as people read it."""
    return f"< {1e-3:g}" if p < 1e-3 else f"= {p:.3f}"


def contestants(plan: Plan, winner: Recipe, control: str | None = None) -> dict[str, Recipe]:
    """The winner and what it has to beat, all as recipes: base, each expert, the uniform average; of a winner that
    was trained also the winner before, and a parent after the same training.

    Args:
        control: that parent: the name of an expert, or `base`.
    """
    found = {"base": parent_recipe(winner, "base")}
    for expert in plan.frame.experts:
        found[f"expert {expert}"] = parent_recipe(winner, expert)
    uniform = {"method": "linear", "parameters": {"weight": 1.0}}
    found["uniform average"] = Recipe.model_validate({**found["base"].model_dump(include=FRAME), **uniform})
    pure = tuple(step for step in winner.operators if not trains(step))
    if pure != winner.operators:
        found["winner untrained"] = winner.model_copy(update={"operators": pure})
        if control is not None:
            parent = parent_recipe(winner, control)
            found[f"{_named(control)} trained alike"] = parent.model_copy(update={"operators": winner.operators})
    found["winner"] = winner
    return found


def _named(parent: str) -> str:
    return parent if parent == "base" else f"expert {parent}"


def certify(plan: Plan, winner: Recipe, pool: Pool) -> Certificate:
    """Scores all contestants on the hold-out documents and compares them.

    Args:
        pool: workers set up with the hold-out tasks.

    Raises:
        ConfigError: the fitness has no hold-out.
        CandidateError: a contestant could not be scored.
    """
    entries = plan.experiment.fitness.holdout
    if not entries:
        raise ConfigError("fitness", ["holdout: lists no task, so no gain can be confirmed; add some"])
    recipes = contestants(plan, winner, _control(plan))
    names = list(recipes)
    scores: dict[str, Score] = {}
    for outcome in pool.run([Job(key, recipes[name]) for key, name in enumerate(names)]):
        if outcome.score is None:
            raise CandidateError(f"{names[outcome.key]} could not be scored: {outcome.reason}")
        scores[names[outcome.key]] = outcome.score
    rows = [
        Row(
            name=name,
            tasks=scores[name].measured.tasks,
            mean=scores[name].measured.mean,
            against=None if name == "winner" else paired(differences(entries, scores["winner"], scores[name])),
        )
        for name in names
    ]
    own = {"base", *(f"expert {name}" for name in plan.frame.experts)}
    parents = [row for row in rows if row.name in own]
    return Certificate(
        rows=tuple(rows),
        documents=sum(len(task.documents) for task in scores["winner"].report.tasks.values()),
        best_parent=max(parents, key=lambda row: row.mean).name,
        warnings=truncation_warnings(
            "the winner",
            scores["winner"].report,
            {name: score.report.truncated for name, score in scores.items() if name != "winner"},
        ),
    )


def _control(plan: Plan) -> str | None:
    """The parent that the study's second phase trained beside the elites; None if there was none."""
    trials = journal.read_trials(plan.folder) if plan.training else []
    return next((trial.of for trial in trials[::-1] if trial.role == "control"), None)


def differences(entries: Sequence[Entry], ours: Score, theirs: Score) -> list[np.ndarray]:
    """Per entry, the documents' differences in its reported metric: float64 (documents,)."""

    def values(score: Score, entry: Entry) -> np.ndarray:
        tasks = [score.report.tasks[name] for name in ours.groups[entry.task]]
        return np.concatenate([task.metrics[entry.metric] for task in tasks])

    return [values(ours, entry) - values(theirs, entry) for entry in entries]


def paired(differences: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> Paired:
    """Tests the mean over tasks of the mean paired difference.

    Args:
        differences: per task, float64 (documents,).

    Returns:
        The gain with its bootstrap interval and permutation p-value. Reproducible: both are seeded.
    """
    gain = float(np.mean([task.mean() for task in differences]))
    random = np.random.Generator(np.random.Philox(key=seed))
    boot, flipped = np.zeros(resamples), np.zeros(resamples)
    for task in differences:
        for start in range(0, resamples, _CHUNK):
            chunk = slice(start, min(start + _CHUNK, resamples))
            shape = (chunk.stop - chunk.start, task.size)
            boot[chunk] += task[random.integers(task.size, size=shape)].mean(axis=1)
            flipped[chunk] += (task * (2 * random.integers(2, size=shape) - 1)).mean(axis=1)
    boot /= len(differences)
    flipped /= len(differences)
    low, high = np.quantile(boot, [0.025, 0.975])
    as_large = int((np.abs(flipped) >= abs(gain) - 1e-12).sum())
    return Paired(gain, float(low), float(high), (as_large + 1) / (resamples + 1))


def truncation_warnings(name: str, report: Report, others: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    """A warning for each task on which a model's answers were cut off more or less often than others'.

    Args:
        name, report: the model's.
        others: model -> task -> truncated answers, over the same documents.
    """
    warnings = []
    for task, result in report.tasks.items():
        ours = report.truncated[task]
        counts = {other: truncated[task] for other, truncated in others.items()}
        answers = max(len(result.documents), ours, *counts.values())  # a document may ask for several answers
        unlike = [
            f"{other} {theirs}" for other, theirs in counts.items() if truncation_differs(ours, theirs, answers)
        ]
        if unlike:
            warnings.append(
                f"{task}: truncation differs: of {answers} answers {name} had {ours} cut off, {', '.join(unlike)}; "
                "part of the difference may be answers that end in time: raise the task's max_gen_toks"
            )
    return tuple(warnings)


def truncation_differs(first: int, second: int, answers: int) -> bool:
    """Whether two models' counts of truncated answers, of `answers` each, differ noticeably and beyond chance.

    Fisher's exact test, two-sided. It takes the answers as independent, where the documents are the same: that
    makes it slower to warn, never faster.
    """
    if abs(first - second) < max(NOTICEABLE * answers, 1):
        return False

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    both = first + second
    whole = log_choose(2 * answers, both)
    tail = math.fsum(
        math.exp(log_choose(answers, k) + log_choose(answers, both - k) - whole)
        for k in range(max(0, both - answers), min(first, second) + 1)
    )
    return 2 * tail < LEVEL  # both tails are alike, because both models have as many answers


def certify_winner(plan: Plan, winner: Recipe, progress: Progress = lambda text: None) -> Certificate:
    """Certifies the winner of a study on workers of its own, and keeps the result: STUDY/certificate.json."""
    progress("starting workers for the hold-out tasks")
    left = trained_files(plan, journal.read_trials(plan.folder)) if plan.training else {}
    pool = open_pool(plan.experiment.workers, replace(plan.setup(holdout=True), left=left))
    try:
        certificate = certify(plan, winner, pool)
    finally:
        pool.close()
    path = plan.folder / CERTIFICATE
    with writing.saving(path):
        text = json.dumps({"recipe": winner.sha256, **as_json(certificate)}, indent=2)
        path.write_text(text + "\n", encoding="utf-8")
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
