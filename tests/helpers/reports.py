"""Reports of made-up scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.scoring.reports import Report, TaskScore


def report(**tasks: Mapping[str, Sequence[float]]) -> Report:
    """Task -> metric -> the number of each document; a metric's value is their mean."""
    scores = {
        name: TaskScore(
            np.arange(len(next(iter(metrics.values())))),
            {metric: np.array(values) for metric, values in metrics.items()},
            {metric: float(np.mean(values)) for metric, values in metrics.items()},
        )
        for name, metrics in tasks.items()
    }
    return Report(scores, tokens=0, padding=0, truncated={}, cut_prompts={})
