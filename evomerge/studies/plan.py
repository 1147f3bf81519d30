"""The plan of a study: an experiment laid over its models, and the recipes and starting points that follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from evomerge.errors import CheckpointError, ConfigError, EvomergeError
from evomerge.files.hashing import file_sha256
from evomerge.files.schema import faults_of
from evomerge.models import Progress
from evomerge.models.survey import Survey, survey_models
from evomerge.operators.training import overlap
from evomerge.operators.training.corpus import documents
from evomerge.recipes.recipe import OperatorStep, Recipe, pattern_faults
from evomerge.scoring.tasks import document_texts
from evomerge.searching.spaces.decoding import CommonRecipe, LaidOut
from evomerge.searching.spaces.genes import Coordinate, Genome, initial
from evomerge.searching.spaces.known_points import known_points, resolve
from evomerge.searching.spaces.operator_genes import Operator
from evomerge.studies import journal, second_phase, warm_start
from evomerge.studies.candidates import operating
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.experiment import Experiment
from evomerge.studies.folder import ANSWERS, DELTAS, EXPERIMENT, TABLES
from evomerge.studies.trials import Trial, best_trial

SMALL_ENOUGH_TO_HASH = 2 << 30  # bytes of a model up to which every candidate's weights are hashed


@dataclass(frozen=True)
class Plan:
    """An experiment laid over its models: all that a study needs besides workers.

    Attributes:
        experiment: the experiment, whose sources have their hashes and whose starts are genomes.
        survey: what the checkpoints are.
        laid: the search space, laid over the models.
        folder: the study's folder.
        longest: the longest text, in tokens, that operators make some candidate fit for; None if they do not change
            the base's own length.
    """

    experiment: Experiment
    survey: Survey
    laid: LaidOut
    folder: Path
    longest: int | None = None

    @property
    def coordinates(self) -> Sequence[Coordinate]:
        """The coordinates of all genomes."""
        return self.laid.coordinates

    @property
    def model_bytes(self) -> int:
        """The size of the live model in bytes."""
        return self.survey.parameters * (4 if self.survey.dtype == "float32" else 2)

    def setup(self, *, holdout: bool = False) -> Setup:
        """What workers are made from.

        Args:
            holdout: whether they get the hold-out tasks instead of the search tasks.
        """
        fitness = self.experiment.fitness
        return Setup(
            base=self.survey.base,
            experts=self.survey.experts,
            dtype=self.survey.dtype,
            cache=str(self.folder / TABLES),
            compiled=self.experiment.compile,
            fitness=fitness,
            entries=fitness.holdout if holdout else fitness.search,
            hash_weights=self.model_bytes <= SMALL_ENOUGH_TO_HASH,
            vocabulary=self.experiment.vocabulary,
            answers=str(self.folder / ANSWERS),
            deltas=str(self.folder / DELTAS),
            max_length=self.longest,
        )

    @property
    def training(self) -> list[Operator]:
        """The operators of the second phase."""
        return [operator for operator in self.experiment.operators if operator.training]


def make_plan(experiment: Experiment, progress: Progress = lambda text: None) -> Plan:
    """Opens the models of an experiment and lays its search space over them.

    Raises:
        CheckpointError: a model is missing, damaged or does not fit.
        ConfigError: the search space does not fit the model, or a start the search space.
    """
    earlier = _earlier(experiment)
    survey = survey_models(experiment.base, experiment.experts, experiment.dtype, progress, experiment.vocabulary)
    common = CommonRecipe(
        base=survey.base,
        experts=survey.experts,
        layers=survey.layers,
        dtype=survey.dtype,
        seed=experiment.seed,
        operators=tuple(operator for operator in experiment.operators if not operator.training),
        vocabulary=experiment.vocabulary,
    )
    laid = LaidOut(experiment.space, common)
    try:
        recipe = laid.decode(initial(laid.coordinates))
    except ValidationError as error:  # values under `fixed`, which only now meet experts and layers
        raise ConfigError("space", faults_of(error)) from error
    if faults := pattern_faults(recipe, survey.names):
        raise ConfigError("space", faults)
    pure = [step for step in _extremes(experiment) if not operating.trains(step)]
    operating.check_operators(survey.base, survey.experts, pure)
    # The study keeps the hashes of the weights, so that it notices if they change, and the starts as genomes,
    # because the studies that they come from may be gone later.
    starts = resolve(laid.coordinates, experiment.starts, earlier)
    experiment = experiment.model_copy(update={"base": survey.base, "experts": survey.experts, "starts": starts})
    longest = operating.longest_text(survey.base, pure)
    return Plan(experiment, survey, laid, Path(experiment.study), longest)


def check_training(plan: Plan) -> None:
    """Checks the training of the second phase: its operators fit the models, its files of texts are there and
    unchanged, no text is one that candidates are scored by, in the search or on the hold-out, and the merged model
    has all of their tokens.

    Raises:
        ConfigError: with all faults of one kind.
    """
    if not plan.training:
        return
    operating.check_operators(plan.survey.base, plan.survey.experts, _extremes(plan.experiment))
    faults = []
    for operator in plan.training:
        for name, corpus in operator.corpora().items():
            if corpus.sha256 not in (None, file_sha256(Path(corpus.path))):
                faults.append(
                    f"{operator.name}.data.{name}: {corpus.path} has changed since the study began; put it back"
                )
    if faults:
        raise ConfigError("operators", faults)
    fitness = plan.experiment.fitness
    include = Path(fitness.include) if fitness.include else None
    reserved = document_texts(fitness.specs((*fitness.search, *fitness.holdout)), include)
    for operator in plan.training:
        for name, corpus in operator.corpora().items():
            shared = overlap.shared(documents(Path(corpus.path)), reserved)
            faults += [f"{operator.name}.data.{name}: {line}" for line in shared]
    if faults:
        raise ConfigError("operators", faults)
    files = {f"{one.name}.data.{name}": file for one in plan.training for name, file in one.corpora().items()}
    operating.check_texts(plan.survey, plan.experiment.vocabulary, files)


def recipe_of(plan: Plan, trial: Trial) -> Recipe:
    """The recipe of a trial, rebuilt from its genome.

    Raises:
        CheckpointError: this recipe is not the one that was scored.
    """
    recipe = second_phase.member_recipe(plan.laid, plan.training, trial)
    if recipe.sha256 != trial.recipe:
        raise CheckpointError(
            f"{plan.folder}: trial {trial.number} cannot be rebuilt: its recipe was {trial.recipe[:12]} and is now "
            f"{recipe.sha256[:12]}; a checkpoint, or the study's {EXPERIMENT}, has changed since the search"
        )
    return recipe


def trained_files(plan: Plan, trials: Iterable[Trial]) -> dict[str, str]:
    """Name of a file that training left for a trial -> the sha256 of its tensors, see `Setup.trained`."""
    return {
        operating.delta_file(recipe, position): str(trial.training_records[step.name]["sha256"])
        for trial in trials
        if trial.training_records
        for recipe in [recipe_of(plan, trial)]
        for position, step in enumerate(recipe.operators)
        if step.name in trial.training_records
    }


def _extremes(experiment: Experiment) -> list[OperatorStep]:
    """The experiment's operators, each with its genes at either end of their ranges."""
    return [step for operator in experiment.operators for step in operator.extremes()]


def starting_points(plan: Plan, progress: Progress = lambda text: None) -> list[Genome]:
    """The genomes to look at first, each once: those that the experiment names, then the known points of the space.

    Args:
        progress: is told when angles between the experts are to be measured, see `warm_start.model_stock`.
    """
    experiment = plan.experiment
    points: list[Genome] = [start for start in experiment.starts if not isinstance(start, str)]
    if experiment.warm_start:
        stock = warm_start.model_stock(plan.setup(), plan.laid, plan.survey.places, progress)
        points += known_points(plan.laid, [] if stock is None else [stock])
    else:
        points.append(initial(plan.coordinates))
    return [point for number, point in enumerate(points) if point not in points[:number]]


def _earlier(experiment: Experiment) -> dict[str, Genome]:
    """The best points of the earlier studies that an experiment starts from, by their paths.

    Raises:
        ConfigError: there is no study, or no trial of it is finished; with all faults.
    """
    genomes, faults = {}, []
    for path in (start for start in experiment.starts if isinstance(start, str)):
        try:
            winner = best_trial(journal.read_trials(Path(path)))
        except EvomergeError as error:
            faults.append(f"{error}. Give the folder of an earlier study, or take it off the list")
            continue
        if winner is None:
            faults.append(f"{path} has no finished trial; take it off the list")
        else:
            genomes[path] = winner.genome
    if faults:
        raise ConfigError("starts", faults)
    return genomes
