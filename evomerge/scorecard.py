"""Scores one model folder, and checks an experiment's tasks, with the engine of the search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from evomerge import checkpoints, residency, tensors, workers
from evomerge.candidate import open_scorer
from evomerge.errors import ConfigError
from evomerge.fitness import Entry, Fitness, measure
from evomerge.inputs import Inputs
from evomerge.loading import load_model, load_tokenizer, quiet
from evomerge.recipe import Source, parse_source
from evomerge.study import Plan, check_training


def score_model(
    model: str, fitness: Fitness, entries: Sequence[Entry], *, dtype: str, threads: int
) -> dict[str, Any]:
    """The scores of a model folder or Hub id, as plain values.

    Raises:
        EvomergeError: the model or a task cannot be opened, or a score is not finite.
    """
    if not entries:
        raise ConfigError("fitness", ["holdout: lists no task"])
    found = Inputs(Source.model_validate(parse_source(model)), {}, where="model")
    folder = found.folder
    if dtype == "auto":
        dtype = found.dtype
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ConfigError("--dtype", [f"is {dtype!r}; give auto, float32, bfloat16 or float16"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(threads)
    live = load_model(folder, dtype, device)
    scorer = open_scorer(live, load_tokenizer(folder), fitness, entries)
    assert scorer is not None
    report = scorer.score()
    measured = measure(entries, report, scorer.expanded)
    return {
        "model": model,
        "dtype": dtype,
        "fitness": measured.value,
        "mean": measured.mean,
        "tasks": measured.tasks,
        "climbed": measured.climbed,
        "documents": {task: len(result.documents) for task, result in report.tasks.items()},
        "truncated": report.truncated,
        "note": scorer.note,
        "weights_sha256": tensors.sha256({name: value.data for name, value in live.named_parameters()}),
    }


def check_workers(plan: Plan) -> dict[str, Any]:
    """Checks that this machine has what the workers ask for, and plans where the checkpoints lie while they merge.

    Returns:
        plain values: the workers, the residency with its bytes, and what a merge takes at the speed measured here.

    Raises:
        WorkerError: this machine has not what they ask for.
    """
    resources = workers.plan(plan.experiment.workers, workers.cores(), torch.cuda.device_count())
    survey = plan.survey
    found = residency.plan(
        survey.nbytes,
        plan.model_bytes,
        survey.largest * survey.nbytes // survey.parameters,
        gpu=resources.device == "cuda",
        workers=resources.count,
        free=residency.room(resources.device),
    )
    torch.set_num_threads(resources.threads)
    speed = residency.speed(found.kind, resources.device)
    return {
        "workers": f"{resources.count} on {resources.device}, threads of each: {resources.threads}",
        "residency": _RESIDENCIES[found.kind],
        "memory_bytes": found.gpu_bytes or found.host_bytes,
        "fits": found.fits,
        "merge_bytes": found.merge_bytes,
        "copy_gigabytes_per_second": round(speed / 1e9, 1),
        "expected_merge_seconds": float(f"{found.merge_bytes / speed:.2g}"),
    }


_RESIDENCIES = {
    "mapped": "memory-mapped files, one copy for all workers",
    "resident": "all on the GPU",
    "streamed": "pinned files, streamed to the GPU through two buffers",
}


def check_tasks(plan: Plan) -> tuple[dict[str, int], str | None]:
    """Builds all tasks of an experiment, search and hold-out.

    Returns:
        task -> number of documents; and what people should know of how they are scored, if anything.

    Raises:
        ConfigError: a task or metric does not exist, or a hold-out document is a search document as well.
    """
    quiet()
    fitness = plan.experiment.fitness
    folder = checkpoints.locate(plan.survey.base, "base")
    model = load_model(folder, plan.survey.dtype, "cpu")
    tokenizer = load_tokenizer(folder)
    scorer = open_scorer(model, tokenizer, fitness, (*fitness.search, *fitness.holdout), plan.longest)
    assert scorer is not None
    searched = {
        digest
        for entry in fitness.search
        for task in scorer.expanded[entry.task]
        for digest in scorer.document_hashes(task)
    }
    faults = []
    for entry in fitness.holdout:
        for task in scorer.expanded[entry.task]:
            shared = sum(digest in searched for digest in scorer.document_hashes(task))
            if shared:
                faults.append(f"holdout: {shared} documents of {task} are search documents as well")
    if faults:
        raise ConfigError("fitness", faults)
    check_training(plan)
    return dict(scorer.documents), scorer.note
