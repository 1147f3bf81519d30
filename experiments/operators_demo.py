"""A two-phase search with both operators on the demo family: killed with -9, resumed, certified, exported."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import search_models
import yaml

from evomerge.results.certificate import as_json, certify_winner
from evomerge.results.exporting.folder import export_trial
from evomerge.results.paired_test import p_text
from evomerge.scoring.documents import skills
from evomerge.studies import life, study
from evomerge.studies.candidates import score_model
from evomerge.studies.experiment import load_experiment
from evomerge.studies.folder import JOURNAL
from evomerge.studies.journal import read_trials
from evomerge.studies.plan import Plan, make_plan, recipe_of
from evomerge.studies.trials import Trial, best_trial

ROWS = 400  # texts to learn from, of each skill
KILLS = 3


class _Silent:
    def generation(self, number: int, size: int) -> None:
        pass

    def trial(self, trial: Trial) -> None:
        pass


def run(*, quick: bool, seed: int = 0) -> dict[str, Any]:
    """Runs it, and prints what the second phase came to."""
    candidates = 40 if quick else 150
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        family = search_models._tiny()
        family["operators"] = _operators(folder, 10 if quick else 40)
        whole, killed = (_plan(folder, family, one, candidates, seed) for one in ("whole", "killed"))
        expected = _search(whole)
        counts = [_killed(killed, random.Random(one), len(expected)) for one in range(KILLS)]
        trials = _search(killed)
        same = [_what_counts(one) for one in trials] == [_what_counts(one) for one in expected]
        print(f"killed after {counts} of {len(expected)} trials; resumed to the same log: {same}")
        winner = best_trial(trials)
        assert winner is not None
        rows = [
            {"role": one.role, "of": one.parent, "fitness": one.value, "mean": one.mean}
            for one in trials
            if not one.searched
        ]
        for row in rows:
            print(f"{row['role']:10}{row['of']:10}{row['fitness']:.4f}{row['mean']:9.4f}")
        with contextlib.redirect_stderr(io.StringIO()):
            certificate = certify_winner(killed, recipe_of(killed, winner))
            out = export_trial(killed, winner, folder / "out", lambda text: None)
            fitness = killed.experiment.fitness
            scored = score_model.score_model(str(out), fitness, fitness.search, dtype="auto", threads=1)
        for row in certificate.rows:
            gain = "" if row.against is None else f"{row.against.gain:+.3f} (p {p_text(row.against.p)})"
            print(f"{row.name:32}{row.mean:.3f}  {gain}")
        exact = scored["fitness"] == winner.value and scored["weights_sha256"] == winner.weights_sha256
        length = json.loads((out / "config.json").read_text())["max_position_embeddings"]
        print(f"the export, of {length} positions, scores as its trial did, to the last bit: {exact}")
        print(certificate.verdict)
        return {
            "seed": seed,
            "killed_after": counts,
            "same_log": same,
            "second_phase": rows,
            "certificate": as_json(certificate),
            "export_equals_trial": exact,
        }


def _operators(folder: Path, steps: int) -> list[dict[str, Any]]:
    data = {}
    for name in ("reverse", "sort", "double"):
        path = folder / f"{name}.jsonl"
        lines = (json.dumps({"prompt": p, "completion": c}) for p, c in skills.examples(name, ROWS, seed=9))
        path.write_text("\n".join(lines) + "\n")
        data[name] = str(path)
    betas = {name: {"low": low, "high": high, "scale": "log"} for name, low, high in _BETAS}
    return [
        {"context_extension": {"method": "yarn", "factor": 2, "truncate": False, **betas}},
        {
            "distillation": {
                "when": {"top": 0.25, "min": 3},
                "data": data,
                "teachers": {name: name for name in data},
                "steps": steps,
                "batch": 48,
                "length": 32,
                "rank": 8,
                "lr": 5e-3,
            }
        },
    ]


_BETAS = (("beta_fast", 1.5, 64.0), ("beta_slow", 0.25, 4.0))


def _plan(folder: Path, family: dict[str, Any], name: str, candidates: int, seed: int) -> Plan:
    experiment = {
        **family,
        "budget": {"candidates": candidates},
        "seed": seed,
        "workers": {"backend": "inline", "threads": 1},
        "study": str(folder / name),
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(experiment))
    plan = make_plan(load_experiment(path))
    life.create(plan.experiment)
    return plan


def _search(plan: Plan) -> list[Trial]:
    with contextlib.redirect_stderr(io.StringIO()):
        return study.search(plan, _Silent())


def _killed(plan: Plan, chance: random.Random, length: int) -> int:
    """How many trials the log has after a process that searched was killed."""
    child = os.fork()
    if child == 0:
        try:
            _search(plan)
        finally:
            os._exit(0)
    journal = plan.folder / JOURNAL
    there = journal.read_bytes().count(b"\n") if journal.exists() else length // 2
    aim = min(there + chance.randint(1, 4), length - 1)
    while not journal.exists() or journal.read_bytes().count(b"\n") <= aim:
        if os.waitpid(child, os.WNOHANG)[0]:
            return len(read_trials(plan.folder))
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return len(read_trials(plan.folder))


def _what_counts(trial: Trial) -> tuple[Any, ...]:
    return (trial.number, trial.role, trial.genome, trial.recipe, trial.value, trial.weights_sha256)
