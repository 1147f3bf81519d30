"""Checks of an experiment before it runs: its workers on this machine, and its tasks."""

from __future__ import annotations

from typing import Any

import torch

from evomerge.errors import ConfigError
from evomerge.merging import placement
from evomerge.models.family import Inputs
from evomerge.models.loading import load_model, quiet
from evomerge.scoring.opening import open_scorer
from evomerge.studies.plan import Plan, check_training
from evomerge.studies.workers.resources import cores, plan_workers


def check_workers(plan: Plan) -> dict[str, Any]:
    """Checks that this machine has what the workers ask for, and plans where the checkpoints lie while they merge.

    Returns:
        Plain values: the workers, where the checkpoints lie, the bytes that this takes, whether they fit, and the
        expected seconds of a merge at the speed of copying that is measured here.

    Raises:
        WorkerError: this machine does not have what the workers ask for.
    """
    resources = plan_workers(plan.experiment.workers, cores(), torch.cuda.device_count())
    survey = plan.survey
    placed = placement.decide(
        survey.nbytes,
        plan.model_bytes,
        survey.largest * survey.nbytes // survey.parameters,
        gpu=resources.device == "cuda",
        workers=resources.count,
        free=placement.room(resources.device),
    )
    torch.set_num_threads(resources.threads)
    speed = placement.speed(placed.kind, resources.device)
    return {
        "workers": f"{resources.count} on {resources.device}, threads of each: {resources.threads}",
        "residency": _RESIDENCIES[placed.kind],
        "memory_bytes": placed.gpu_bytes or placed.host_bytes,
        "fits": placed.fits,
        "merge_bytes": placed.merge_bytes,
        "copy_gigabytes_per_second": round(speed / 1e9, 1),
        "expected_merge_seconds": float(f"{placed.merge_bytes / speed:.2g}"),
    }


# Where the checkpoints lie while they are merged, in words, by `placement.Placement.kind`.
_RESIDENCIES = {
    "mapped": "memory-mapped files, one copy for all workers",
    "resident": "all on the GPU",
    "streamed": "pinned files, streamed to the GPU through two buffers",
}


def check_tasks(plan: Plan) -> tuple[dict[str, int], str | None]:
    """Builds all tasks of an experiment, those of the search and those of the hold-out.

    Returns:
        Task -> the number of its documents; and a note on how they are scored, None where there is nothing to note.

    Raises:
        ConfigError: a task or metric does not exist, a document holds a token that the merged model has not, a
            hold-out document is a search document as well, or a training text is one that candidates are scored by.
    """
    quiet()
    fitness = plan.experiment.fitness
    inputs = Inputs(plan.survey.base, plan.survey.experts, plan.experiment.vocabulary)
    trust = plan.survey.base.trusted
    model = load_model(inputs.folder, plan.survey.dtype, "cpu", inputs.rows, trust=trust)
    entries = (*fitness.search, *fitness.holdout)
    scorer = open_scorer(model, inputs.tokenizer(), fitness, entries, plan.longest)
    assert scorer is not None
    searched = {
        digest
        for entry in fitness.search
        for task in scorer.groups[entry.task]
        for digest in scorer.document_hashes(task)
    }
    faults = []
    for entry in fitness.holdout:
        for task in scorer.groups[entry.task]:
            shared = sum(digest in searched for digest in scorer.document_hashes(task))
            if shared:
                faults.append(f"holdout: {shared} documents of {task} are search documents as well")
    if faults:
        raise ConfigError("fitness", faults)
    check_training(plan)
    return dict(scorer.documents), scorer.note
