"""Searches on real models, and the hold-out score of what each strategy would export on the way."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.demo.family import train_family
from evomerge.recipes.recipe import Recipe
from evomerge.studies import life, study
from evomerge.studies.candidates.workbench import Workbench
from evomerge.studies.experiment import load_experiment
from evomerge.studies.plan import Plan, make_plan, recipe_of
from evomerge.studies.trials import Trial
from evomerge.studies.workers.inline_pool import InlinePool

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench_search"
MARKS = (1 / 50, 1 / 30, 1 / 20, 1 / 10, 1 / 5, 1 / 2, 1)  # of the plain search's documents
Curve = list[tuple[int, float]]
Spread = Callable[[Sequence[float]], str]


class _Silent:
    def generation(self, number: int, size: int) -> None:
        pass

    def trial(self, trial: Trial) -> None:
        pass


def run(
    given: argparse.Namespace, strategies: dict[str, dict[str, Any]], full: int, spread: Spread
) -> dict[str, Any]:
    """Runs the strategies on one family of models, seed by seed, and prints the table."""
    family = _tiny() if given.family == "tiny" else _smollm2()
    if given.limit:
        family["fitness"]["search"] = [{**entry, "limit": given.limit} for entry in family["fitness"]["search"]]
    if given.holdout:
        family["fitness"]["holdout"] = [{**entry, "limit": given.holdout} for entry in family["fitness"]["holdout"]]
    if given.quick:
        full = 20
    known = json.loads(given.known.read_text())["models"] if given.known else []
    earlier = {row["strategy"]: row["curves"] for row in known if row["strategy"] not in (given.only or ())}
    names = [name for name in strategies if name in (given.only or strategies) or name in earlier]
    holdout = _Holdout(family, dear=given.family != "tiny")
    curves: dict[str, list[Curve]] = {name: [] for name in names}
    documents = 0
    for seed in given.seeds:
        for name in [name for name in names if name not in earlier]:
            curve, documents = _search(family, strategies[name], seed, full, holdout)
            curves[name].append(curve)
            print(f"seed {seed} {name}: " + " ".join(f"{at}:{value:.3f}" for at, value in curve), flush=True)
    curves.update(earlier)
    print(
        f"\nhold-out accuracy, {holdout.size} documents, after so many document-forwards ({documents} to search on)"
    )
    print(f"{'':28}" + "".join(f"{round(full * documents * mark):>24,}" for mark in MARKS))
    rows = []
    for name in names:
        cells = [[_at(curve, full * documents * mark) for curve in curves[name]] for mark in MARKS]
        print(f"{name:28}" + "".join(f"{spread(cell) if None not in cell else '':>24}" for cell in cells))
        rows.append({"strategy": name, "cells": cells, "curves": curves[name]})
    if names[0] in curves and len(names) > 1:
        _reached(curves, full * documents)
    return {"models": rows, "documents": documents}


def _reached(curves: dict[str, list[Curve]], whole: int) -> None:
    """Prints what each strategy takes for the first one's last median."""
    first, *others = curves
    goal = float(np.median([curve[-1][1] for curve in curves[first]]))
    print(f"\n{first} ends at {goal:.3f} after {whole:,}. The medians of the others are there after")
    for name in others:
        steps = sorted({at for curve in curves[name] for at, _ in curve})
        medians = ((at, [_at(curve, at) for curve in curves[name]]) for at in steps)
        need = next((at for at, cell in medians if None not in cell and np.median(cell) >= goal), None)
        print(f"  {name:28}" + ("never" if need is None else f"{need:>9,}, 1/{whole / need:.1f}"))


def _at(curve: Curve, spent: float) -> float | None:
    return next((value for at, value in reversed(curve) if at <= spent), None)


def _search(
    family: dict[str, Any], strategy: dict[str, Any], seed: int, full: int, holdout: _Holdout
) -> tuple[Curve, int]:
    """(document-forwards, hold-out accuracy of the best known) after each change of the best; and the documents."""
    with tempfile.TemporaryDirectory() as folder:
        fitness = dict(family["fitness"])
        if "climb" in strategy:
            fitness["search"] = [{**entry, "climb": strategy["climb"]} for entry in fitness["search"]]
        whole = holdout.documents * full
        experiment = {
            **{key: family[key] for key in ("base", "experts", "space", "dtype")},
            "fitness": fitness,
            "sampler": strategy["sampler"],
            "fidelity": strategy.get("fidelity", {}),
            "warm_start": not strategy.get("cold", False),
            "budget": {"documents": max(whole // strategy.get("share", 1), 4 * holdout.documents)},
            "seed": seed,
            "workers": {"backend": "inline", "threads": 1},
            "study": str(Path(folder) / "study"),
        }
        if "share" not in strategy:
            experiment["budget"] = {"candidates": full}
        path = Path(folder) / "experiment.yaml"
        path.write_text(yaml.safe_dump(experiment))
        plan = make_plan(load_experiment(path))
        life.create(plan.experiment)
        with contextlib.redirect_stderr(io.StringIO()):
            trials = study.search(plan, _Silent())
        return _curve(plan, trials, holdout, whole), holdout.documents


def _curve(plan: Plan, trials: list[Trial], holdout: _Holdout, full: int) -> Curve:
    changes: list[tuple[int, Trial]] = []
    best: Trial | None = None
    spent = 0
    batches = any(not trial.all_documents for trial in trials)
    for trial in trials:
        if trial.role == "final":  # it only tells the score of what was chosen before
            continue
        spent += trial.documents
        better = trial.incumbent if batches else best is None or (trial.value or 0.0) > (best.value or 0.0)
        if better and trial.value is not None:
            best = trial
            changes.append((spent, trial))
    if holdout.dear:  # the best at each mark alone
        marks = [max((at for at, _ in changes if at <= full * mark), default=0) for mark in MARKS]
        changes = [change for change in changes if change[0] in (*marks, changes[-1][0])]
    found = [(at, holdout.score(recipe_of(plan, trial))) for at, trial in changes]
    return [*found, (spent, found[-1][1])] if found else []


class _Holdout:
    """Scores recipes on the hold-out documents, each once.

    Attributes:
        documents: that are searched on. size: that are held out. dear: whether scoring them takes long.
    """

    def __init__(self, family: dict[str, Any], *, dear: bool) -> None:
        self.dear = dear
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "experiment.yaml"
            keys = ("base", "experts", "space", "dtype", "fitness")
            content = {**{key: family[key] for key in keys}, "budget": {"candidates": 1}, "study": "study"}
            path.write_text(yaml.safe_dump(content))
            plan = make_plan(load_experiment(path))
        self._folder = tempfile.TemporaryDirectory()
        setup = plan.setup(holdout=True)
        self.documents = sum(InlinePool(plan.setup()).documents.values())
        self._bench = Workbench(
            type(setup)(**{**vars(setup), "cache": self._folder.name, "answers": None, "hash_weights": False})
        )
        self.size = sum(self._bench.documents.values())
        self._known: dict[str, float] = {}

    def score(self, recipe: Recipe) -> float:
        """The mean accuracy over the tasks."""
        if recipe.sha256 not in self._known:
            self._known[recipe.sha256] = self._bench.evaluate(recipe).measured.mean
        return self._known[recipe.sha256]


def _tiny() -> dict[str, Any]:
    folder = CACHE / "tiny"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        train_family(folder)
        (folder / "done").touch()
    models = folder / "models"
    experts = {path.name.removeprefix("expert-"): str(path) for path in sorted(models.glob("expert-*"))}
    space = {
        "method": "task_arithmetic",
        "layers": {"groups": 2},
        "modules": ["attention", "mlp"],
        "genes": {"weight": {"low": 0.0, "high": 1.5, "init": 0.5, "per": ["layer", "module", "expert"]}},
    }
    fitness = yaml.safe_load((ROOT / "fitness/tiny_skills.yaml").read_text())
    fitness["include"] = str(ROOT / "fitness" / fitness["include"])
    return {
        "base": str(models / "base"),
        "experts": experts,
        "space": space,
        "fitness": fitness,
        "dtype": "float32",
    }


def _smollm2() -> dict[str, Any]:
    home = ROOT / "experiments/smollm2"
    data = yaml.safe_load((home / "experiment.yaml").read_text())
    fitness = yaml.safe_load((home / "fitness.yaml").read_text())
    fitness["include"] = str(home / fitness["include"])
    return {
        "base": str((home / data["base"]).resolve()),
        "experts": {name: str((home / one).resolve()) for name, one in data["experts"].items()},
        "space": data["space"],
        "fitness": fitness,
        "dtype": data["dtype"],
    }
