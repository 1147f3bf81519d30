"""Evaluates the candidates of a study. A score that is known already is not computed again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from evomerge.recipes.recipe import Recipe
from evomerge.scoring.measured import document_scores
from evomerge.searching.host import Assignment, Evaluation
from evomerge.studies.candidates.operating import trains
from evomerge.studies.candidates.score import Score
from evomerge.studies.plan import Plan
from evomerge.studies.scores import read_score, write_score
from evomerge.studies.workers.jobs import Job, Outcome, Pool


@dataclass(frozen=True)
class Scored:
    """The recipe that was evaluated, and its score; None if the candidate failed."""

    recipe: Recipe
    score: Score | None


@dataclass
class Cost:
    """What it took to score a candidate.

    Attributes:
        tokens: how many tokens were forwarded.
        seconds: phase of an evaluation, see `candidates.score.PHASES` -> its seconds.
    """

    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Evaluator:
    """Evaluates on a pool of workers, and keeps scores on all search documents in the study's folder.

    Args:
        plan: the experiment, laid over its models.
        pool: the workers.
        fitness: the hash of the fitness, which kept scores have to match.
        stopped: is set when the person wants the study to stop.
    """

    def __init__(self, plan: Plan, pool: Pool, fitness: str, stopped: threading.Event) -> None:
        self._plan, self._pool, self._fitness, self._stopped = plan, pool, fitness, stopped
        self._costs: dict[str, Cost] = {}  # sha256 of a recipe -> what it took since its last trial

    def evaluate(self, assignments: Iterable[Assignment | None]) -> Iterator[tuple[int, Evaluation]]:
        """Evaluates genomes, and yields the key and the evaluation of each, in any order.

        Equal recipes on the same documents are evaluated once.

        Raises:
            KeyboardInterrupt: the person wants the study to stop.
        """
        asked: dict[int, tuple[Assignment, Recipe]] = {}  # of the assignments under way, by their keys
        alike: dict[str, list[int]] = {}  # identity of an assignment -> the keys of all that have it

        def jobs() -> Iterator[Job | Outcome | None]:
            for one in assignments:
                if one is None:
                    yield None
                    continue
                recipe = self._plan.laid.decode(one.genome)
                asked[one.key] = one, recipe
                twins = alike.setdefault(_identity(one, recipe), [])
                twins.append(one.key)
                if len(twins) == 1:
                    yield self._known(one.key, recipe, one) or Job(one.key, recipe, one.documents, one.gradient)

        for outcome in self._outcomes(jobs()):
            first, recipe = asked[outcome.key]
            self._count(recipe, outcome)
            if first.documents is None and not first.gradient:
                self._keep(recipe, outcome)
            for key in alike.pop(_identity(first, recipe)):
                yield key, self._evaluation(*asked.pop(key), outcome)

    def score_whole(self, recipes: Mapping[int, Recipe]) -> Iterator[Outcome]:
        """Scores recipes on all search documents. Outcomes come as they are ready, in any order.

        Args:
            recipes: the key of an outcome -> the recipe.

        Raises:
            KeyboardInterrupt: the person wants the study to stop.
        """
        jobs = (self._known(key, recipe) or Job(key, recipe) for key, recipe in recipes.items())
        for outcome in self._outcomes(jobs):
            self._keep(recipes[outcome.key], outcome)
            yield outcome

    def cost(self, recipe: Recipe) -> Cost:
        """What it took to score a recipe since this was last asked for it."""
        return self._costs.pop(recipe.sha256, Cost())

    def _outcomes(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        """The pool's outcomes of jobs, until the person wants the study to stop."""
        for outcome in self._pool.run(jobs):
            if self._stopped.is_set():
                raise KeyboardInterrupt
            yield outcome

    def _known(self, key: int, recipe: Recipe, asked: Assignment | None = None) -> Outcome | None:
        """The outcome of a recipe from the score that is kept; None if it has to be scored.

        Only scores on all documents are kept. A candidate that is trained is built again, for that gives the record
        of its training and leaves the trained tensors on disk.
        """
        some = asked is not None and (asked.documents is not None or asked.gradient)
        if some or any(map(trains, recipe.operators)):
            return None
        score = read_score(self._plan.folder, recipe.sha256, self._fitness)
        return None if score is None else Outcome(key, score, from_disk=True)

    def _keep(self, recipe: Recipe, outcome: Outcome) -> None:
        """Writes a new score on all documents into the study's folder."""
        if outcome.score is not None and not outcome.from_disk:
            write_score(self._plan.folder, recipe.sha256, self._fitness, outcome.score)

    def _count(self, recipe: Recipe, outcome: Outcome) -> None:
        """Adds what an outcome took to the cost of its recipe.

        A candidate may be scored in several steps before its trial is logged.
        """
        if outcome.score is not None:
            cost = self._costs.setdefault(recipe.sha256, Cost())
            cost.tokens += outcome.score.report.tokens
            for phase, seconds in outcome.score.seconds.items():
                cost.seconds[phase] = cost.seconds.get(phase, 0.0) + seconds

    def _evaluation(self, asked: Assignment, recipe: Recipe, outcome: Outcome) -> Evaluation:
        """The evaluation of an assignment; its gradient is taken from the recipe's coefficients to the genome."""
        score, source = outcome.score, Scored(recipe, outcome.score)
        if score is None:
            return Evaluation(reason=outcome.reason, source=source)
        scores = document_scores(score.report, score.groups)
        evaluation = Evaluation(scores, score.value, source=source)
        if outcome.slope is None:
            return evaluation
        slope = self._plan.laid.pull_back(asked.genome, outcome.slope)
        return replace(evaluation, gradient=slope)


def _identity(asked: Assignment, recipe: Recipe) -> str:
    """The key under which equal assignments are evaluated once: recipe, documents, gradient."""
    return f"{recipe.sha256} {asked.gradient} {sorted((asked.documents or {}).items())}"
