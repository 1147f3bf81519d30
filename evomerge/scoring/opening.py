"""The scorer of a fitness's entries on a live model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    return Scorer(
        model,
        tokenizer,
        fitness.specs(entries),
        include=Path(fitness.include) if fitness.include else None,
        apply_chat_template=fitness.apply_chat_template,
        max_length=max_length,
    )
