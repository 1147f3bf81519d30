"""What a search finds for the documents it spends: ours step by step, against what others do.

    python experiments/bench_search.py simulator [--dimensions 48 200] [--seeds 6] [--json FILE] [--quick]
    python experiments/bench_search.py models    [--family tiny|smollm2] [--seeds 5] [--only NAME ...] [--quick]
    python experiments/bench_search.py digits    [--seeds 5] [--quick]
    python experiments/bench_search.py proposals [--quick]
    python experiments/bench_search.py resume    [--quick]

simulator  true fitness of what each strategy recommends after so many document evaluations, on the landscapes of
           simulator.py (of those on all documents: of the better of mean and best candidate); and the documents
           that the default needs to reach what plain CMA-ES on all documents has after 100 candidates. Medians and
           quartiles over seeds: of the landscape and of the search.
models     hold-out accuracy against documents forwarded on real models, a backward pass counted as two forward.
           What a strategy would export at that moment is scored; the hold-out is never searched on.
digits     M2N2's benchmark through `searching.maximize`: test accuracy against full-data evaluations.
proposals  seconds of ask and tell for one candidate after 2,000 trials in 200 dimensions, and of replaying them.
resume     seconds until a study of 2,000 trials goes on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import numpy as np
from simulator import LANDSCAPES, Simulator

from evomerge import plugins
from evomerge.searching import samplers
from evomerge.searching.documents import Fidelity
from evomerge.searching.maximize import maximize
from evomerge.searching.samplers import Problem, Result
from evomerge.searching.search import Line
from evomerge.searching.spaces.genes import Coordinate, Genome, initial

ROOT = Path(__file__).resolve().parent.parent
FULL = 100  # candidates of the plain search that the others are held against


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(_PARTS))
    parser.add_argument("--quick", action="store_true", help="few seeds and documents: does it run at all")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[48, 200])
    parser.add_argument("--family", choices=["tiny", "smollm2"], default="tiny")
    parser.add_argument("--limit", type=int, help="search documents of each task (models)")
    parser.add_argument("--holdout", type=int, help="hold-out documents of each task (models)")
    parser.add_argument("--known", type=Path, help="an earlier --json, whose curves stand for those not in --only")
    parser.add_argument("--only", nargs="+", help="these strategies alone (models)")
    given = parser.parse_args()
    given.seeds = range(given.first_seed, given.first_seed + (2 if given.quick else given.seeds))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "cma", "cmaes", "optuna", "numpy")}
    print("python", " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    print(f"python {platform.python_version()}", *(f"{name} {version}" for name, version in versions.items()))
    print(f"seeds {given.seeds[0]} to {given.seeds[-1]}", flush=True)
    found = _PARTS[given.what](given)
    if given.json:
        given.json.write_text(json.dumps({"versions": versions, "command": sys.argv[1:], **found}, indent=1) + "\n")


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


# --- the simulator -----------------------------------------------------------------------------------------

_APART: dict[str, Any] = {"select": 0.0, "final": False}  # what is recommended is known here without it
SIMULATED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain CMA-ES, all documents": ("pycma", {}, {"batch": "all"}),
    "random, all documents": ("random", {}, {"batch": "all"}),
    "pycma, 24 fresh documents": ("pycma", {}, {**_APART, "batch": 24, "adapt": False}),
    "default, batch fixed": ("cma", {}, {**_APART, "adapt": False}),
    "default": ("cma", {}, _APART),
}
_MARKS = (3_000, 10_000, 30_000, 100_000)


def simulator(given: argparse.Namespace) -> dict[str, Any]:
    """Curves of all strategies on all landscapes, and how soon the default is where the plain search ends."""
    marks = _MARKS[:2] if given.quick else _MARKS
    rows = []
    for dimensions in given.dimensions:
        for landscape in LANDSCAPES:
            print(f"\n{landscape}, {dimensions} dimensions: true fitness after so many document evaluations")
            print(f"{'':32}" + "".join(f"{mark:>24,}" for mark in marks))
            curves = {}
            for name, choice in SIMULATED.items():
                curves[name] = [_simulate(landscape, dimensions, seed, choice, marks[-1]) for seed in given.seeds]
                cells = [[_at(curve, mark) for curve in curves[name]] for mark in marks]
                print(f"{name:32}" + "".join(f"{spread(cell):>24}" for cell in cells), flush=True)
                rows.append({"landscape": landscape, "dimensions": dimensions, "strategy": name, "cells": cells})
            if not given.quick:
                rows.append(_sooner(landscape, dimensions, curves))
    return {"simulator": rows}


def _sooner(landscape: str, dimensions: int, curves: dict[str, list[list[tuple[int, float]]]]) -> dict[str, Any]:
    """The documents after which the default's median is where the plain search's is after 100 candidates."""
    plain, ours = curves["plain CMA-ES, all documents"], curves["default"]
    goal = float(np.median([_at(curve, FULL * 1000) for curve in plain]))
    steps = sorted({spent for curve in ours for spent, _ in curve})
    need = next((s for s in steps if np.median([_at(curve, s) for curve in ours]) >= goal), None)
    told = "not within the budget" if need is None else f"{need:,} documents, 1/{FULL * 1000 / need:.1f}"
    print(f"plain CMA-ES after {FULL} candidates: {goal:.3f}; the default is there after {told}", flush=True)
    return {"landscape": landscape, "dimensions": dimensions, "goal": goal, "documents": need}


def _at(curve: Sequence[tuple[int, float]], spent: int) -> float:
    """The value of the last point within so many documents."""
    return next((value for at, value in reversed(curve) if at <= spent), curve[0][1])


def _simulate(
    landscape: str, dimensions: int, seed: int, choice: tuple[str, dict[str, Any], dict[str, Any]], budget: int
) -> list[tuple[int, float]]:
    """(documents spent, true fitness of the recommendation) after each generation."""
    world = Simulator(landscape, dimensions, seed)
    coordinates = [Coordinate(f"x{at}", 0.0, 1.0, 0.5, log=False) for at in range(dimensions)]

    def point(genome: Genome) -> np.ndarray:
        return np.array([[genome[c.name] for c in coordinates]])

    def evaluate(genome: Genome, ids: Sequence[int]) -> np.ndarray:
        found: np.ndarray = world.answers(point(genome), np.asarray(ids))[0]
        return found

    sampler, options, fidelity = choice
    curve: list[tuple[int, float]] = []

    def watch(spent: int, lines: Sequence[Line], recommended: Genome | None) -> None:
        points = [] if recommended is None else [recommended]
        whole = [line for line in lines if line.all_documents]
        if whole:  # the candidate that scored best, or the mean, whichever is truly better: no one could know
            points.append(max(whole, key=lambda line: line.value or 0.0).genome)
        curve.append((spent, max(float(world.true(point(one))[0]) for one in points)))

    maximize(
        evaluate,
        coordinates,
        world.documents,
        sampler=sampler,
        options=options,
        fidelity=Fidelity(**fidelity),
        budget=budget,
        seed=1000 + seed,
        watch=watch,
    )
    return curve


# --- proposals ---------------------------------------------------------------------------------------------

_DIMENSIONS, _TRIALS = 200, 2_000


def proposals(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of ask and tell, on the processor's own clock."""
    trials = 200 if given.quick else _TRIALS
    coordinates = [Coordinate(f"x{at}", 0.0, 1.0, 0.5, log=False) for at in range(_DIMENSIONS)]
    rows = []
    print(f"{'sampler':12}{'ask + tell ms a candidate':>28}{f'replay of {trials:,} trials s':>30}")
    for name in plugins.names("samplers"):
        if name in ("optunahub", "gp", "tpe"):  # needs a package; far slower: minutes
            continue
        module = samplers.load(name)
        sampler = module.make(Problem(coordinates, 0, [initial(coordinates)]), module.Options())
        random = np.random.default_rng(0)
        seen, number, last = 0, 0, 0.0
        start = time.process_time()
        while seen < trials:
            begun = time.process_time()
            asked = sampler.ask(number)
            results = [_made_up(genome, module, random, asked.gradient) for genome in asked.genomes]
            sampler.tell(number, results)
            last = (time.process_time() - begun) / len(results)
            seen, number = seen + len(results), number + 1
        whole = time.process_time() - start
        print(f"{name:12}{1000 * last:28.2f}{whole:30.1f}", flush=True)
        rows.append({"sampler": name, "candidate_seconds": last, "replay_seconds": whole})
    return {"proposals": rows}


def _made_up(genome: Genome, module: Any, random: np.random.Generator, gradient: bool) -> Result:
    x = np.array(list(genome.values()), dtype=float)
    value = -float(((x - 0.3) ** 2).mean()) + 0.01 * float(random.standard_normal())
    scores = value + random.standard_normal(1000) if module.DOCUMENTS else None
    slope = {name: -2 * (float(one) - 0.3) for name, one in genome.items()} if gradient else None
    return Result(value, (value,), scores, slope)


# --- M2N2's benchmark ----------------------------------------------------------------------------------------


def digits(given: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy of what is recommended, after so many evaluations of all training documents."""
    import digits as benchmark

    marks = (5, 20) if given.quick else (5, 10, 20, 50, 100)
    strategies: dict[str, tuple[str, str, dict[str, Any]]] = {
        "default on log-likelihood": ("cma", "loglikelihood", _APART),
        "default on accuracy": ("cma", "accuracy", _APART),
        "plain CMA-ES on accuracy": ("pycma", "accuracy", {"batch": "all"}),
        "M2N2 on accuracy": ("m2n2", "accuracy", {"batch": "all"}),
        "random on accuracy": ("random", "accuracy", {"batch": "all"}),
    }
    rows = []
    print(f"{'test accuracy after full-data evaluations':42}" + "".join(f"{mark:>24}" for mark in marks))
    for name, (sampler, metric, fidelity) in strategies.items():
        curves = [benchmark.search(seed, sampler, metric, Fidelity(**fidelity), marks[-1]) for seed in given.seeds]
        cells = [[_at(curve, mark) for curve in curves] for mark in marks]
        print(f"{name:42}" + "".join(f"{spread(cell):>24}" for cell in cells), flush=True)
        rows.append({"strategy": name, "marks": marks, "cells": cells})
    return {"digits": rows}


# --- real models -------------------------------------------------------------------------------------------

_SMALL = {"population": 12}
MODELS: dict[str, dict[str, Any]] = {
    "plain CMA-ES on accuracy": {"climb": "acc", "sampler": "pycma", "fidelity": {"batch": "all"}, "cold": True},
    "+ smooth metric": {"sampler": "pycma", "fidelity": {"batch": "all"}, "cold": True},
    "+ mini-batches": {"sampler": "cma", "fidelity": {"adapt": False}, "cold": True, "share": 10},
    "+ adapting": {"sampler": "cma", "cold": True, "share": 10},
    "+ warm start: the default": {"sampler": "cma", "share": 10},
    "default with gradients": {"sampler": {"name": "cma", "gradient": 20}, "share": 20},
    "TPE on accuracy": {"climb": "acc", "sampler": "tpe", "fidelity": {"batch": "all"}, "cold": True},
    "random on accuracy": {"climb": "acc", "sampler": "random", "fidelity": {"batch": "all"}, "cold": True},
}


def models(given: argparse.Namespace) -> dict[str, Any]:
    """Curves of all strategies on one family."""
    import search_models

    return search_models.run(given, MODELS, FULL, spread)


def resume(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds until a long study goes on."""
    import search_resume

    return search_resume.run(given)


_PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "simulator": simulator,
    "proposals": proposals,
    "digits": digits,
    "models": models,
    "resume": resume,
}

if __name__ == "__main__":
    main()
