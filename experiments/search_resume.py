"""How long a long study takes to go on: everything but the scoring is real."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from search_models import _Silent, _tiny

from evomerge.scoring.measured import Measured
from evomerge.scoring.reports import Report, TaskScore
from evomerge.studies import experiment, life, study
from evomerge.studies.candidates.score import Score
from evomerge.studies.plan import make_plan
from evomerge.studies.workers.jobs import Job, Outcome

_PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


class _MadeUp:
    """A pool that draws the scores from the recipe's hash."""

    size, note = 1, None

    def __init__(self, tasks: list[str]) -> None:
        self.documents = dict.fromkeys(tasks, 1000)

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        for job in jobs:
            assert isinstance(job, Job)
            yield Outcome(job.key, self._score(job))

    def _score(self, job: Job) -> Score:
        random = np.random.default_rng(int(job.recipe.sha256[:12], 16))
        tasks = {}
        for name, count in self.documents.items():
            ids = np.arange(count) if job.documents is None else np.array(job.documents[name])
            values = random.random(len(ids))
            tasks[name] = TaskScore(ids, {"acc": values, "probability": values}, {"probability": values.mean()})
        means = {name: float(task.aggregates["probability"]) for name, task in tasks.items()}
        measured = Measured(means, means)
        report = Report(tasks, 0, 0, dict.fromkeys(tasks, 0), {})
        return Score(
            float(np.mean(list(means.values()))),
            measured,
            report,
            {name: (name,) for name in tasks},
            {"merge": 0.0, "scoring": 0.0},
        )

    def close(self) -> None:
        pass


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Fills a study, opens it again, and takes the time until it could go on."""
    trials = 200 if given.quick else 2_000
    family = _tiny()
    space = {
        "method": "dare_linear",
        "layers": "each",
        "modules": [f"*{name}_proj*" for name in _PROJECTIONS],
        "genes": {
            "weight": {"low": 0.0, "high": 1.5, "per": ["layer", "module", "expert"]},
            "density": {"low": 0.1, "high": 1.0, "per": ["layer", "module", "expert"]},
        },
    }
    rows = []
    for storage in ("journal", "sqlite"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "experiment.yaml"
            keys = ("base", "experts", "fitness", "dtype")
            content = {**{key: family[key] for key in keys}, "space": space, "storage": storage, "study": "study"}
            path.write_text(yaml.safe_dump({**content, "budget": {"candidates": trials}}))
            plan = make_plan(experiment.load_experiment(path))
            life.create(plan.experiment)
            pool = _MadeUp([entry.task for entry in plan.experiment.fitness.search])
            begun = time.process_time()
            study.Study(plan, pool, _Silent()).run()
            filled = time.process_time() - begun
            begun = time.process_time()
            again = study.Study(plan, pool, _Silent())
            again.run()
            opened = time.process_time() - begun
            size = len(plan.coordinates)
            print(f"{storage}: {len(again.trials):,} trials of {size} genes: {opened:.1f} s to go on", end="")
            print(f"; {1000 * filled / len(again.trials):.0f} ms a trial in all but merge and scoring", flush=True)
            rows.append({"storage": storage, "genes": size, "resume_seconds": opened, "fill_seconds": filled})
    return {"resume": rows}
