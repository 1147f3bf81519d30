"""Which tasks an entry of the fitness stands for, and the share that each has in the entry's score.

The shares of a group are lm-eval's own: lm-eval is asked to aggregate made-up scores. It takes all tasks of the
group and of the groups inside it, leaves out those that lack the metric and filter, and counts twice what stands
there twice.

Where lm-eval has no score, as of a tag, the mean over all documents is taken. A group that aggregates all its
metrics by `weight_by_size: false` has the plain mean over its tasks of any other metric as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evomerge.errors import ConfigError, suggest
from evomerge.scoring.lm_eval_parts import aggregated, ignores_sizes, task_names
from evomerge.scoring.metrics import Metrics
from evomerge.scoring.reports import Member, TaskSpec
from evomerge.scoring.tasks import Expanded


def members(
    specs: Sequence[TaskSpec], expanded: Mapping[str, Expanded], metrics: Mapping[str, Metrics]
) -> tuple[dict[str, dict[str, Member]], list[str]]:
    """Entry -> task -> what the task is in the entry; and a line about each entry that leaves tasks out.

    Args:
        expanded: entry -> the tasks that it names.
        metrics: task -> its metrics.

    Raises:
        ConfigError: with every metric that a task lacks, of which less is better, or that is no mean over
            documents.
    """
    groups, notes, faults = {}, [], []
    for spec in specs:
        entry = _Entry(spec, expanded[spec.task], {name: metrics[name] for name in expanded[spec.task].names})
        groups[spec.task] = entry.members()
        faults += entry.faults
        if left := [name for name in entry.tasks if name not in groups[spec.task]]:
            notes.append(f"{spec.task}: {', '.join(left)}: no {spec.metric}, so no part in it, as in lm-eval")
    if faults:
        raise ConfigError("fitness", list(dict.fromkeys(faults)))
    return groups, notes


class _Entry:
    """An entry of the fitness whose members are looked for.

    Attributes:
        tasks: the tasks that it names -> their metrics.
        faults: what is wrong with it.
    """

    def __init__(self, spec: TaskSpec, expanded: Expanded, tasks: Mapping[str, Metrics]) -> None:
        self._spec, self._group, self.tasks = spec, expanded.group, tasks
        self._several = expanded.group is not None or len(tasks) > 1
        self.faults: list[str] = []

    def members(self) -> dict[str, Member]:
        """Task -> what it is in the entry; what is wrong is added to the faults."""
        metric = self._spec.metric
        if metric is None:
            return {name: Member(share, "", "") for name, share in self._our_shares().items()}
        key = self._key(metric)
        if self.faults:
            return {}
        shares = self._our_shares() if key is None else self._shares(key)
        found = {}
        for name, share in shares.items():
            own = self._own(name, "metric", key or metric)
            climbs = own if self._spec.climbs is None else self._own(name, "climb", self._spec.climbs)
            found[name] = Member(share, own, climbs)
        return found

    def _key(self, metric: str) -> str | None:
        """lm-eval's name (`metric,filter`) of the score that it gives of a group; None where it gives none."""
        if self._group is None:
            return None
        printed = aggregated(self._group, {name: dict.fromkeys(own.keys, 0.0) for name, own in self.tasks.items()})
        if metric in printed:
            return metric
        keys = [key for key in printed if key.split(",")[0] == metric]
        first = {own.first_key(metric) for own in self.tasks.values()} - {None}
        for key in keys:
            if len(keys) == 1 or first == {key}:
                return key
        if keys:
            choices = " or ".join(map(repr, keys))
            self.faults.append(f"{self._spec.task}: lm-eval has several scores of its {metric}; give {choices}")
        return None

    def _shares(self, key: str) -> dict[str, float]:
        """Task -> its share of the group's score of that name in lm-eval."""
        having = [name for name, own in self.tasks.items() if key in own.keys]
        shares = {
            name: aggregated(
                self._group,
                {other: {key: float(other == name)} for other in having},
                {other: self.tasks[other].documents for other in having},
            )[key]
            for name in having
        }
        if not math.isclose(sum(shares.values()), 1.0, rel_tol=1e-9):
            self.faults.append(f"{self._spec.task}: its {key} is no weighted mean of its tasks; name these instead")
        return shares

    def _our_shares(self) -> dict[str, float]:
        """Task -> its share, where lm-eval has no score of the entry."""
        named = list(self.tasks) if self._group is None else task_names(self._group)
        by_size = self._group is None or not ignores_sizes(self._group)
        weights = {name: named.count(name) * (own.documents if by_size else 1) for name, own in self.tasks.items()}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    def _own(self, name: str, key: str, metric: str) -> str:
        """The task's own name of a metric; a fault where it cannot be climbed or reported.

        Args:
            key: the key of the fitness that names the metric.
        """
        metrics = self.tasks[name]
        own = metrics.own_name(metric)
        if own is not None and metric not in (*metrics.names, *metrics.corpus):
            metric = own  # lm-eval's `acc,none`
        if own is None:
            self.faults.append(f"{name}: has no {key} {metric!r}.{suggest(metric, metrics.names)}")
        elif own in metrics.corpus:
            self.faults.append(
                f"{name}: {metric} is one number for all documents together, and evomerge needs one for each; give "
                f"another {key}.{suggest(metric, metrics.names)}"
            )
        elif not metrics.higher_is_better(own):
            self.faults.append(f"{name}: less {metric} is better; give a {key} of which more is better")
        elif self._several and not metrics.is_mean(own):
            self.faults.append(
                f"{name}: its {metric} is no mean over documents, so {self._spec.task} has none; "
                f"give another {key}, or name the task by itself"
            )
        return own or metric
