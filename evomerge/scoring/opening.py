"""The scorer of a fitness's entries on a live model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, suggest
from evomerge.scoring.fitness import Entry, Fitness
from evomerge.scoring.scorer import Scorer


def open_scorer(
    model: Any, tokenizer: Any, fitness: Fitness | None, entries: Sequence[Entry], max_length: int | None = None
) -> Scorer | None:
    """The scorer of some of a fitness's entries on a live model; None if there are no entries.

    Args:
        max_length: tokens of the longest prompt with its answer, see `Scorer`.

    Raises:
        ConfigError: a task cannot be built, or lacks an entry's metric.
    """
    if fitness is None or not entries:
        return None
    scorer = Scorer(
        model,
        tokenizer,
        fitness.specs(entries),
        include=Path(fitness.include) if fitness.include else None,
        apply_chat_template=fitness.apply_chat_template,
        max_length=max_length,
    )
    check_metrics(entries, scorer)
    return scorer


def check_metrics(entries: Sequence[Entry], scorer: Scorer, where: str = "fitness") -> None:
    """Checks that every entry's metrics exist.

    Raises:
        ConfigError: with every metric that a task lacks, or of which less is better.
    """
    faults = []
    for entry in entries:
        for task in scorer.expanded[entry.task]:
            known = scorer.metrics(task)
            for key, metric in (("metric", entry.metric), ("climb", entry.climbs)):
                if metric not in known:
                    faults.append(f"{task}: has no {key} {metric!r}.{suggest(metric, known)}")
                elif not scorer.higher_is_better(task, metric):
                    faults.append(f"{task}: less {metric} is better; give a {key} of which more is better")
    if faults:
        raise ConfigError(where, list(dict.fromkeys(faults)))
