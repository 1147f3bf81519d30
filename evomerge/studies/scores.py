"""Scores on all search documents, with the results on each document, in files beside the log."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from evomerge.files.writing import replacing, saving
from evomerge.scoring.measured import Measured
from evomerge.scoring.reports import Member, Report, TaskScore
from evomerge.studies.candidates.score import Score
from evomerge.studies.folder import DOCUMENTS


def write_score(folder: Path, recipe: str, fitness: str, score: Score) -> None:
    """Writes a recipe's score, with its results on each document, to STUDY/documents/RECIPE.npz.

    Args:
        folder: the study's folder.
        recipe, fitness: the hashes of the recipe and of the fitness.

    Raises:
        StudyError: the disk does not take it.
    """
    arrays: dict[str, np.ndarray] = {}
    tasks = {}
    for position, (task, result) in enumerate(score.report.tasks.items()):
        arrays[f"{position}/documents"] = result.documents
        for metric, values in result.metrics.items():
            arrays[f"{position}/metrics/{metric}"] = values
        tasks[task] = {"aggregates": result.aggregates, "metrics": list(result.metrics)}
    rest = {
        "fitness": fitness,
        "members": {entry: {task: asdict(one) for task, one in own.items()} for entry, own in score.groups.items()},
        "value": score.value,
        "measured": asdict(score.measured),
        "tasks": tasks,
        "report": {k: v for k, v in asdict(replace(score.report, tasks={})).items() if k != "tasks"},
        "seconds": score.seconds,
        "weights_sha256": score.weights_sha256,
    }
    arrays["about"] = np.frombuffer(json.dumps(rest).encode(), dtype=np.uint8)
    path = _score_path(folder, recipe)
    with saving(path), replacing(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_score(folder: Path, recipe: str, fitness: str) -> Score | None:
    """The score of a recipe under a fitness, as it was kept.

    None if no score was kept or its file is damaged: the candidate is then scored again.

    Args:
        folder: the study's folder.
        recipe, fitness: the hashes of the recipe and of the fitness.
    """
    path = _score_path(folder, recipe)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            rest = json.loads(stored["about"].tobytes())
            if rest["fitness"] != fitness or "members" not in rest:  # as in scores of earlier versions
                return None
            tasks = {
                task: TaskScore(
                    documents=stored[f"{position}/documents"],
                    metrics={m: stored[f"{position}/metrics/{m}"] for m in about["metrics"]},
                    aggregates=about["aggregates"],
                )
                for position, (task, about) in enumerate(rest["tasks"].items())
            }
    except Exception:  # whatever a damaged zip file raises
        return None
    report = Report(tasks=tasks, **rest["report"])
    groups = {entry: {task: Member(**one) for task, one in own.items()} for entry, own in rest["members"].items()}
    measured = Measured(**rest["measured"])
    return Score(rest["value"], measured, report, groups, rest["seconds"], rest["weights_sha256"])


def read_truncated(folder: Path, recipe: str, fitness: str) -> dict[str, int] | None:
    """Task -> the number of truncated answers in the score of a recipe that was kept.

    It is much faster than `read_score`, and None where that is None.
    """
    try:
        with np.load(_score_path(folder, recipe), allow_pickle=False) as stored:
            rest = json.loads(stored["about"].tobytes())
    except Exception:  # whatever a missing or damaged zip file raises
        return None
    return dict(rest["report"]["truncated"]) if rest["fitness"] == fitness else None


def _score_path(folder: Path, recipe: str) -> Path:
    """The file of a recipe's score."""
    return folder / DOCUMENTS / f"{recipe}.npz"
