"""Our pass against mergekit's own computation of the same recipes, tensors to tensors, on CPU.

mergekit runs in another process, under an interpreter that has it: `bench_merge_driver.py` loads the same
family into memory, then merges it whenever it is told to, with mergekit's merge-method objects, tensor by tensor:
no files, no planning, no writing. While one side works the other waits at a pipe, and the sides take turns, so that
a noisy machine disturbs both. bfloat16 is what mergekit works in for bfloat16 checkpoints as its users run it;
float32 is its `dtype: float32, out_dtype: bfloat16`. Ours computes in float32 always. TIES' tables are ours only
and made once for a study; their seconds are in the row.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench_merge_common import METHODS, Bench, Family, head, line, live_model, millions, seconds, spread
from bench_merge_pass import compiling, tables

from evomerge.merging.merger import Merger
from evomerge.models import tensor_names
from evomerge.models.live_weights import live_weights
from evomerge.recipes.recipe import Recipe

VERSION = "0.1.5"
WANTED = {"dare_ties": 50.0, "ties": 100.0}  # times as fast, at least
_HERE = Path(__file__).resolve().parent
_OURS = 3  # of our passes to one of mergekit's
_COLUMNS = (
    ("model", 9),
    ("method", 9),
    ("threads", 7),
    ("works in", 8),
    ("tables s", 8),
    ("ours s", 7),
    ("mergekit s", 10),
    ("×faster", 7),
    ("wanted", 6),
)


def interpreter(asked: str) -> Path:
    """The Python that has mergekit; `auto` makes an environment in .cache/mergekit, once."""
    if asked != "auto":
        return Path(asked)
    home = _HERE.parent / ".cache" / "mergekit"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        print(f"making an environment with mergekit {VERSION} in .cache/mergekit", flush=True)
        venv.create(home, with_pip=True, clear=True)
        wanted = [f"mergekit=={VERSION}", f"torch=={torch.__version__.split('+')[0]}"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        (home / "ready").touch()
    return python


class Driver:
    """mergekit in another process: a request is a line of JSON, and so is its answer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("mergekit's process ended; its message is above")
        return json.loads(answer)


@contextmanager
def driving(python: Path, family: Family) -> Iterator[Driver]:
    """A driver that has the family in memory."""
    command = [python, _HERE / "bench_merge_driver.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            driver = Driver(process)
            driver.ask(load=[str(family.folder / name) for name in ("base", *family.experts)])
            yield driver
        finally:
            process.kill()


def _parameters(recipe: Recipe, names: list[str]) -> dict[str, dict[str, Any]]:
    """For each tensor, mergekit's parameters of this recipe."""
    places = tensor_names.places(names)
    parameters = {}
    for name in names:
        values = recipe.coefficients(places[name])
        shared = {"lambda": values["lambda"][0], **recipe.options[recipe.method_at(places[name])]}
        parameters[name] = {"weight": list(values["weight"]), "density": list(values["density"]), **shared}
    return parameters


def _measure(bench: Bench, family: Family, driver: Driver, method: str, threads: int) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(threads)
    cache = bench.scratch / f"mergekit-tables-{threads}"
    table_seconds = tables(family, method, cache)
    base, experts = family.open()
    merger = Merger(live_weights(live_model(family.config)), base, experts, cache, compiled=compiling())
    recipe = family.recipe(method, 0)
    driver.ask(method=method, threads=threads, parameters=_parameters(recipe, list(family.shapes)))
    merger.apply(recipe)
    for dtype in ("bfloat16", "float32"):
        driver.ask(warm=dtype)
        ours, theirs = [], []
        for _ in range(bench.settings.mergekit_rounds):
            ours += [seconds(lambda: merger.apply(recipe)) for _ in range(_OURS)]
            theirs.append(driver.ask(merge=dtype)["seconds"])
        yield {
            "parameters": family.parameters,
            "experts": len(experts),
            "method": method,
            "threads": threads,
            "mergekit_works_in": dtype,
            "table_seconds": table_seconds,
            "our_seconds": statistics.median(ours),
            "our_quartiles": spread(ours),
            "mergekit_seconds": statistics.median(theirs),
            "mergekit_quartiles": spread(theirs),
            "mergekit_rounds": len(theirs),
            "times_faster": statistics.median(theirs) / statistics.median(ours),
            "wanted": WANTED[method],
        }


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Measures and prints each method and thread count, on one family."""
    if bench.settings.mergekit is None:
        print("\nmergekit: left out; --mergekit auto makes an environment for it (needs a network)")
        return
    family = bench.family(bench.settings.mergekit_parameters)
    with driving(interpreter(bench.settings.mergekit), family) as driver:
        versions = driver.ask(versions=True)
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        head(f"mergekit: the same recipe, tensors to tensors, bfloat16 in and out; its side: {told}", _COLUMNS)
        for method in METHODS:
            for threads in bench.threads:
                for row in _measure(bench, family, driver, method, threads):
                    keys = ("table_seconds", "our_seconds", "mergekit_seconds", "times_faster", "wanted")
                    cells = millions(row["parameters"]), method, threads, row["mergekit_works_in"]
                    line(_COLUMNS, *cells, *(row[key] for key in keys))
                    yield {**row, "versions": versions}
