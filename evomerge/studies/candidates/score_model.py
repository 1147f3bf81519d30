"""Any model folder, scored with the engine of the search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from evomerge.errors import ConfigError
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.family import Inputs
from evomerge.models.live_weights import weights_sha256
from evomerge.models.loading import load_model, load_tokenizer
from evomerge.models.source import DTYPES, Source, parse_source
from evomerge.scoring.fitness import Entry, Fitness
from evomerge.scoring.opening import open_scorer
from evomerge.studies.candidates.score import measure, objective_of


def score_model(
    model: str, fitness: Fitness, entries: Sequence[Entry], *, dtype: str, threads: int
) -> dict[str, Any]:
    """Scores a model, and returns plain values.

    Args:
        model: a folder, or a Hub id with optional @revision.
        fitness: the fitness that the entries belong to.
        entries: the tasks to score.
        dtype: `float32`, `bfloat16` or `float16`; `auto` is the model's own.
        threads: the number of CPU threads, where there is no GPU.

    Returns:
        `fitness` and `mean`; by entry the reported metrics (`tasks`) and the `climbed` ones; by task the number of
        `documents` and of `truncated` answers; `note`, `weights_sha256`, `model` and `dtype`.

    Raises:
        EvomergeError: the model or a task cannot be opened, or a score is not finite.
    """
    if not entries:
        raise ConfigError("fitness", ["holdout: lists no task"])
    inputs = Inputs(Source.model_validate(parse_source(model)), {}, where="model")
    folder = inputs.folder
    if dtype == "auto":
        dtype = inputs.dtype
    if dtype not in DTYPES:
        raise ConfigError("--dtype", [f"is {dtype!r}; give auto, float32, bfloat16 or float16"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(threads)
    live, files = load_model(folder, dtype, device), Checkpoint(folder, "model")
    scorer = open_scorer(live, load_tokenizer(folder), fitness, entries)
    assert scorer is not None
    report = scorer.score()
    objective = objective_of(entries, scorer.groups, scorer.documents)
    measured = measure(objective, report, scorer.groups)
    return {
        "model": model,
        "dtype": dtype,
        "fitness": objective.of_entries(measured.climbed),
        "mean": measured.mean,
        "tasks": measured.tasks,
        "climbed": measured.climbed,
        "documents": {task: len(result.documents) for task, result in report.tasks.items()},
        "truncated": report.truncated,
        "note": "\n".join((*inputs.notes, *filter(None, [scorer.note]))) or None,
        "weights_sha256": weights_sha256(live, {name: files[name] for name in inputs.carried}),
    }
