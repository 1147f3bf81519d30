"""The pass on CPU: `Merger.apply` on a live model against a copy of as many bytes by `torch.Tensor.copy_`.

The copy moves (K+2)·n·bytes, what a pass has to: K experts and the base read, the live parameters written. It is
(K+2)/2 copies from the same mapped files to the same live parameters, tensor by tensor, each reading and writing
n·bytes. Both run in turn, with warm files and warm live parameters, and every round applies another recipe.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from bench_merge_common import METHODS, Bench, Family, head, line, live_model, millions, seconds, spread
from torch import Tensor

from evomerge.merging.kernels.compiling import can_compile
from evomerge.merging.merger import Compile, Merger, prepare
from evomerge.models.live_weights import live_weights
from evomerge.models.tensor_names import places
from evomerge.recipes.recipe import Recipe

WANTED = 2.0  # times the copy, at most
_COLUMNS = (
    ("model", 9),
    ("method", 9),
    ("threads", 7),
    ("tables s", 8),
    ("first s", 7),
    ("pass s", 7),
    ("copy s", 7),
    ("GB/s", 6),
    ("×copy", 6),
    ("eager×", 6),
)


def compiling() -> Compile:
    """Compiled whatever the size, where there is a compiler."""
    return "always" if can_compile(torch.device("cpu")) else "never"


def tables(family: Family, method: str, cache: Path) -> float:
    """Builds a method's tables in the cache, as a study does before its first candidate; the seconds it took."""
    base, experts = family.open()
    sat, recipes = places(family.shapes), [family.recipe(method, 0)]
    return seconds(lambda: prepare(base, experts, sat, recipes, cache, lambda text: None))


def copy(models: list[Mapping[str, Tensor]], live: Mapping[str, Tensor]) -> Callable[[], None]:
    """Moves as many bytes as a pass over these models."""
    streams = len(models) + 1

    def run() -> None:
        for model in models[: streams // 2]:
            for name, target in live.items():
                target.copy_(model[name])
        if streams % 2:  # half a copy: half of each tensor
            for name, target in live.items():
                half = target.numel() // 2
                target.view(-1)[:half].copy_(models[streams // 2][name].view(-1)[:half])

    return run


def plain(recipe: Recipe, merger: Merger, models: list[Mapping[str, Tensor]], live: Mapping[str, Tensor]) -> None:
    """The same computation in whole-tensor eager torch, as one writes it first."""

    def sparse(delta: Tensor, density: float) -> Tensor:
        if recipe.method == "dare_ties":
            return delta * torch.bernoulli(torch.full_like(delta, density)) / density
        mask = torch.zeros_like(delta).view(-1)
        mask[delta.abs().view(-1).argsort(descending=True)[: int(density * delta.numel())]] = 1
        return delta * mask.view_as(delta)

    for name, target in live.items():
        values = recipe.coefficients(merger.places[name])
        base = models[0][name].float()
        each = zip(models[1:], values["weight"], values["density"], strict=True)
        deltas = torch.stack([weight * sparse(model[name].float() - base, d) for model, weight, d in each])
        agrees = deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
        merged = (deltas * agrees).sum(0)
        if recipe.method == "ties":
            weights = torch.tensor(values["weight"]).view(-1, *[1] * base.dim())
            divisor = (weights * agrees).sum(0)
            merged = merged / torch.where(divisor == 0, 1.0, divisor)
        target.copy_(base + merged)


def _measure(bench: Bench, family: Family, method: str, threads: int, live: Any) -> dict[str, Any]:
    torch.set_num_threads(threads)
    cache = bench.scratch / f"tables-{family.parameters}-{threads}"
    table_seconds = tables(family, method, cache)
    base, experts = family.open()
    models: list[Mapping[str, Tensor]] = [base, *experts.values()]
    parameters = {name: parameter.data for name, parameter in live.named_parameters()}
    merger = Merger(live_weights(live), base, experts, cache, compiled=compiling())
    recipes = (family.recipe(method, number) for number in itertools.count())
    move = copy(models, parameters)
    first = seconds(lambda: merger.apply(next(recipes)))
    move()
    merged, copied, eager = [], [], []
    for number in range(bench.settings.rounds):
        copied.append(seconds(move))
        recipe = next(recipes)
        merged.append(seconds(lambda recipe=recipe: merger.apply(recipe)))
        if number < bench.settings.eager_rounds:
            eager.append(seconds(lambda recipe=recipe: plain(recipe, merger, models, parameters)))
    return {
        "parameters": family.parameters,
        "experts": len(experts),
        "method": method,
        "threads": threads,
        "compiled": merger.compiled,
        "hash_seconds": family.hash_seconds,
        "table_seconds": table_seconds,
        "first_seconds": first,
        "pass_seconds": statistics.median(merged),
        "pass_quartiles": spread(merged),
        "copy_seconds": statistics.median(copied),
        "copy_quartiles": spread(copied),
        "eager_seconds": statistics.median(eager) if eager else None,
        "rounds": len(merged),
        "gigabytes_per_second": (len(experts) + 2) * family.nbytes / statistics.median(merged) / 1e9,
        "times_the_copy": statistics.median(merged) / statistics.median(copied),
        "wanted": WANTED,
    }


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Measures and prints each model, method and thread count."""
    head(
        f"pass: Merger.apply, {bench.settings.experts} experts, against copy_ of as many bytes; mapped bfloat16 "
        f"files, warm; wanted: at most {WANTED:g} × copy",
        _COLUMNS,
    )
    for parameters in bench.parameters:
        family = bench.family(parameters)
        live = live_model(family.config)
        for method, threads in itertools.product(METHODS, bench.threads):
            row = _measure(bench, family, method, threads, live)
            eager = row["eager_seconds"]
            line(
                _COLUMNS,
                millions(row["parameters"]),
                method,
                threads,
                *(row[key] for key in ("table_seconds", "first_seconds", "pass_seconds", "copy_seconds")),
                row["gigabytes_per_second"],
                row["times_the_copy"],
                eager / row["pass_seconds"] if eager else "-",
            )
            yield row
    print("tables: built once for a study. first: compiles, if this process has not yet for that thread count.")
    if compiling() == "never":
        print("there is no C++ compiler here: the passes ran eager, block by block")
