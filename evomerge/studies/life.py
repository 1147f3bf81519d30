"""The life of a study's folder: made, opened again, ended, or abandoned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from evomerge.errors import StudyError
from evomerge.files import writing
from evomerge.files.hashing import file_sha256
from evomerge.studies import journal
from evomerge.studies.experiment import Experiment, experiment_to_yaml, load_experiment
from evomerge.studies.folder import ENDED, EXPERIMENT


def create(experiment: Experiment) -> Path:
    """Makes the folder of a new study, with its experiment in it, and returns the folder's path.

    Raises:
        StudyError: the folder holds a study or something else already, or cannot be written.
    """
    folder = Path(experiment.study)
    if (folder / EXPERIMENT).exists():
        raise StudyError(
            f"{folder} holds a study already: continue it with `evomerge resume {folder}`, "
            "or give another folder under `study`"
        )
    writing.refuse_existing(folder, f"study: {folder} is not an empty folder; give another one")
    with writing.saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    keep_experiment(experiment, folder)
    return folder


def keep_experiment(experiment: Experiment, folder: Path) -> None:
    """Writes an experiment to STUDY/experiment.yaml."""
    writing.write_text(folder / EXPERIMENT, experiment_to_yaml(experiment))


def keep_budget(experiment: Experiment) -> None:
    """Writes the experiment into the study's folder again if its budget has changed."""
    folder = Path(experiment.study)
    if load_experiment(folder / EXPERIMENT).budget != experiment.budget:
        keep_experiment(experiment, folder)


def note_end(experiment: Experiment, trials: int) -> None:
    """Notes in STUDY/ended.json that a study has spent its budget.

    Args:
        trials: how many trials the study has.
    """
    folder = Path(experiment.study)
    writing.write_text(folder / ENDED, json.dumps(_end(folder, trials)) + "\n")


def ended(folder: Path, trials: int) -> bool:
    """Whether a study has spent its budget, so that resuming it would find nothing to do.

    False where that is not known: a study that was killed after its last trial notes its end when it is resumed.

    Args:
        trials: how many trials the study has.
    """
    try:
        return bool(json.loads((folder / ENDED).read_text(encoding="utf-8")) == _end(folder, trials))
    except (OSError, ValueError):
        return False


def _end(folder: Path, trials: int) -> dict[str, Any]:
    """What STUDY/ended.json holds if the study ended with so many trials and the experiment that is there now."""
    return {"trials": trials, "experiment": file_sha256(folder / EXPERIMENT)}


def abandon(folder: Path) -> None:
    """Removes the folder of a study without trials, so that its experiment can be put right and run again.

    The folder stays if the study has trials, or another process runs it.
    """
    try:
        with writing.lock(folder):
            if not journal.exists(folder) or not journal.read_trials(folder):
                shutil.rmtree(folder, ignore_errors=True)
    except StudyError:
        return  # another process runs it, or the disk is full


def reopen(folder: Path, candidates: int | None = None, documents: int | None = None) -> Experiment:
    """The experiment of a study folder, wherever the folder lies now.

    Args:
        candidates, documents: replace these limits of the budget. The study keeps them once the search goes on.

    Raises:
        StudyError: the folder is no study.
        ConfigError: its experiment cannot be read.
    """
    if not (folder / EXPERIMENT).is_file():
        raise StudyError(f"{folder} is no study: it has no {EXPERIMENT}; start one with `evomerge run`")
    experiment = load_experiment(folder / EXPERIMENT)
    experiment = experiment.model_copy(update={"study": str(folder.resolve())})
    wanted = {name: value for name, value in (("candidates", candidates), ("documents", documents)) if value}
    budget = experiment.budget.model_copy(update=wanted)
    return experiment.model_copy(update={"budget": budget})
