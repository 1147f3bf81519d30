"""The next round: a study's winner becomes an expert of a new experiment.

Training moves a model out of the space that the experts span, so no genome of the same study can express it. As an
expert of the next study it is merged like any other. So each study searches one fixed function, and is resumed
without the others.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from evomerge.errors import StudyError
from evomerge.files import hashed_tensors, writing
from evomerge.models import Progress
from evomerge.models.source import Source
from evomerge.recipes.recipe import OperatorStep, Recipe
from evomerge.results.exporting.folder import build
from evomerge.studies.candidates.operating import delta_file, trains
from evomerge.studies.experiment import experiment_to_yaml
from evomerge.studies.folder import DELTAS
from evomerge.studies.plan import Plan, recipe_of
from evomerge.studies.trials import Trial

NAME = "promoted"  # the name of the new expert; it gets a number where there is one already
MODEL, EXPERIMENT, STUDY = "model", "experiment.yaml", "study"  # what the next round's folder holds


def promote(plan: Plan, trial: Trial, folder: Path, progress: Progress) -> Path:
    """Makes the next round of a study: its winner's model, and an experiment that has it as one more expert.

    The model is the merge with its training. Operators that act on every candidate are left out of it, because they
    act on the candidates of the next round, too. In all else the experiment is the study's own.

    Args:
        folder: the folder to make. It holds the model, the experiment, and later its study.

    Returns:
        The path of the experiment file.

    Raises:
        StudyError: the trial failed, its training cannot be separated from its other operators, or `folder` exists.
    """
    if trial.value is None:
        raise StudyError(f"trial {trial.number} failed ({trial.reason}); choose another one")
    if folder.exists():
        raise StudyError(f"{folder} exists already; give another folder")
    recipe = recipe_of(plan, trial)
    with tempfile.TemporaryDirectory() as deltas:
        steps = [
            _kept(plan, trial, recipe, position, Path(deltas))
            for position, step in enumerate(recipe.operators)
            if trains(step)
        ]
        merged = recipe.model_copy(update={"operators": tuple(steps)})
        folder.mkdir(parents=True)
        build(merged, plan.survey, folder / MODEL, progress, deltas=Path(deltas))
    experiment = plan.experiment
    experts = {**experiment.experts, _new_name(experiment.experts): Source(model=str((folder / MODEL).resolve()))}
    if experiment.vocabulary is not None:  # where vocabularies are matched, hashes depend on who takes part
        experts = {name: source.model_copy(update={"sha256": None}) for name, source in experts.items()}
        experiment = experiment.model_copy(update={"base": experiment.base.model_copy(update={"sha256": None})})
    changes = {"experts": experts, "study": str((folder / STUDY).resolve()), "starts": ()}
    path = folder / EXPERIMENT
    writing.write_text(path, experiment_to_yaml(experiment.model_copy(update=changes)))
    return path


def _kept(plan: Plan, trial: Trial, recipe: Recipe, position: int, folder: Path) -> OperatorStep:
    """A training step that names the tensors it left, which are copied to a folder.

    Raises:
        StudyError: the tensors are gone or damaged, or were trained after operators that would act twice.
    """
    step, record = recipe.operators[position], trial.training_records[recipe.operators[position].name]
    if record.get("method") == "full" and any(not trains(one) for one in recipe.operators):
        raise StudyError(
            f"trial {trial.number} was trained in all its weights, after operators that act on every candidate: "
            "these would act twice; train with method: lora, or promote an `evomerge export` of your own"
        )
    left = plan.folder / DELTAS / delta_file(recipe, position)
    tensors = hashed_tensors.read(left)
    if tensors is None or tensors[1][hashed_tensors.HASH] != record["sha256"]:
        raise StudyError(
            f"{left}, which training left, is gone or damaged; `evomerge export` of the trial trains again"
        )
    shutil.copy(left, folder / f"{record['sha256']}.safetensors")
    return step.model_copy(update={"delta": record["sha256"]})


def _new_name(experts: Iterable[str]) -> str:
    """A name that no expert has."""
    names = (NAME if number == 1 else f"{NAME}{number}" for number in itertools.count(1))
    return next(name for name in names if name not in experts)
