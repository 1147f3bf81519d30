"""Candidates as ordinary Hugging Face folders, which are checked to hold the model that was scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import CandidateError, StudyError
from evomerge.files import writing
from evomerge.models import NOTE, Progress, fitting
from evomerge.models.live_weights import LiveWeights
from evomerge.models.survey import Survey
from evomerge.operators import Watch, unwatched
from evomerge.recipes import mergekit_yaml
from evomerge.recipes.recipe import Recipe
from evomerge.results.exporting import contents
from evomerge.results.exporting.comparing import compare
from evomerge.results.exporting.contents import Origin
from evomerge.results.exporting.recipe_files import read_recipe, silent
from evomerge.studies.candidates import operating
from evomerge.studies.candidates.setup import Setup, open_inputs
from evomerge.studies.candidates.workbench import Workbench
from evomerge.studies.folder import CERTIFICATE, DELTAS, TABLES
from evomerge.studies.plan import Plan, recipe_of, trained_files
from evomerge.studies.trials import Trial

_UNKNOWN = Origin()


def export_trial(plan: Plan, trial: Trial, out: Path, progress: Progress) -> Path:
    """Builds a trial's model again, in a new folder that transformers loads, and returns the folder's path.

    Raises:
        StudyError: the trial failed, or `out` exists, or the model is not the one that was scored.
        CheckpointError: a checkpoint has changed since the search.
    """
    if trial.value is None:
        raise StudyError(f"trial {trial.number} failed ({trial.reason}); choose another one")
    recipe = recipe_of(plan, trial)
    scores = {"trial": trial.number, "fitness": trial.value, "tasks": trial.tasks, "climbed": trial.climbed}
    origin = Origin(trial.weights_sha256, scores, _certificate(plan.folder / CERTIFICATE, recipe))
    setup = _setup(recipe, plan.survey, plan.folder / TABLES, plan.folder / DELTAS, trained_files(plan, [trial]))
    return _write(recipe, plan.survey, setup, out, progress, origin=origin)


def export_recipe(path: Path, out: Path, progress: Progress, note: Progress = silent) -> Path:
    """Builds the model of a recipe file or mergekit configuration in a new folder, and returns the folder's path.

    Args:
        note: is told what stands in the file and changes nothing.

    Raises:
        ConfigError: the file has faults.
        CheckpointError: a checkpoint is missing, does not fit, or is not the one the recipe names.
    """
    recipe, survey = read_recipe(path, progress, note)
    # A step that has been trained needs neither texts nor teachers again.
    steps = [step for step in recipe.operators if step.delta is None]
    operating.check_operators(survey.base, survey.experts, steps)
    return build(recipe, survey, out, progress, deltas=path.parent / DELTAS)


def build(
    recipe: Recipe,
    survey: Survey,
    out: Path,
    progress: Progress,
    *,
    deltas: Path | None = None,
    watch: Watch = unwatched,
    origin: Origin = _UNKNOWN,
) -> Path:
    """Builds the model of a recipe in a new folder, and returns the folder's path.

    Args:
        survey: what the recipe's checkpoints are.
        out: the folder to make.
        progress: is told of each step.
        deltas: the folder of the tensors that its training operators left, where they have trained already.
        watch: is told of the steps of training, see `operators.Context`.
        origin: what is known of the model besides its recipe.

    Raises:
        CandidateError: the model cannot be built.
        StudyError: `out` exists, or cannot be written.
    """
    for note in survey.notes:
        progress(NOTE + note)
    cache = out.parent / f".{out.name}.tables"
    try:
        setup = _setup(recipe, survey, cache, deltas)
        return _write(recipe, survey, setup, out, progress, origin=origin, watch=watch)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _certificate(path: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The certificate in a file, if there is an undamaged one for this recipe; else None."""
    try:
        certificate = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(certificate, dict) and certificate.get("recipe") == recipe.sha256
    return certificate if same else None


def _setup(
    recipe: Recipe, survey: Survey, cache: Path, deltas: Path | None, trained: Mapping[str, str] | None = None
) -> Setup:
    """What the workbench of an export is made from."""
    return Setup(
        base=survey.base,
        experts=survey.experts,
        dtype=recipe.dtype,
        cache=str(cache),
        threads=max(1, torch.get_num_threads()),
        vocabulary=recipe.vocabulary,
        deltas=None if deltas is None else str(deltas),
        trained=trained or {},
    )


def _write(
    recipe: Recipe,
    survey: Survey,
    setup: Setup,
    out: Path,
    progress: Progress,
    *,
    origin: Origin = _UNKNOWN,
    watch: Watch = unwatched,
) -> Path:
    """Builds a recipe, writes its folder aside, loads it again to compare, and moves it to its place.

    Raises:
        CandidateError: the model cannot be built.
        StudyError: `out` exists or cannot be written, or the model is not the one that was scored.
    """
    out = out.resolve()
    writing.refuse_existing(out)
    aside = writing.folder_aside(out)
    progress("merging")
    open_inputs(setup, progress, whole=True)
    bench = Workbench(setup)
    built = bench.build(recipe, watch)
    digest = _sound_digest(bench.merger.weights, origin.weights_sha256)
    # mergekit merges files as they are, so converted tensors and adapters cannot be expressed in its configuration,
    # and it counts a head that is numbered on after the layers as a layer.
    alike = survey.plain and not survey.carried
    mergekit = mergekit_yaml.write(built.recipe, survey.names) if alike else None
    if origin.merges:
        mergekit = origin.merges.text
    progress("writing")
    with writing.saving(out):
        aside.mkdir(parents=True)
        contents.write(aside, bench, built, digest, origin, mergekit, survey.told())
    progress("loading it again to compare")
    compare(aside, bench, built, digest)
    with writing.saving(out):
        if out.exists():
            out.rmdir()
        aside.replace(out)
    return out


def _sound_digest(weights: LiveWeights, scored: str | None) -> str:
    """The hash of a live model's weights.

    Args:
        scored: the hash that the weights must have; None if any hash will do.

    Raises:
        CandidateError: a weight is not finite.
        StudyError: the hash is another one.
    """
    for name, tensor in weights.merged.items():
        if not fitting.is_finite(tensor.data):
            raise CandidateError(
                f"the merged {name} is not finite: the coefficients are too large, or a parent is not"
            )
    digest = weights.sha256()
    if scored not in (None, digest):
        raise StudyError(
            f"the model built now ({digest[:12]}) is not the one that was scored ({str(scored)[:12]}); "
            "the library or torch has changed since: export with the versions of the search"
        )
    return digest
