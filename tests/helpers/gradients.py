"""A workbench whose fitness has gradients, and the same fitness in float64, written apart, to differentiate."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from evomerge import plugins
from evomerge.merging import methods
from evomerge.merging.kernels import tables
from evomerge.merging.kernels.layouts import shape_along
from evomerge.merging.methods import ByColumn, ByRow, TensorInputs
from evomerge.models import survey
from evomerge.models.source import Source
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.fitness import Fitness
from evomerge.scoring.smooth_metrics import choice_metrics, golds
from evomerge.searching.spaces import decoding
from evomerge.searching.spaces.decoding import CommonRecipe
from evomerge.searching.spaces.space import SearchSpace
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.candidates.workbench import Workbench
from tests.helpers.family import FITNESS

STEP = 1e-7  # of finite differences in float64; so small that no elected sign changes and no element is reached
DEPTH, MODULES = {"anchors": 2}, ["*q_proj*", "mlp"]
# What is not searched, or cannot be: the selecting parameters, each where it selects.
SELECTING = {"density": 0.6, "epsilon": 0.1, "gamma": 0.05, "select_topk": 1.0}
RANGES = {"t": (0.2, 0.8), "weight": (0.2, 0.9), "lambda": (0.6, 1.2), "scale": (0.8, 1.2)}
NEARSWAP = {"t": (0.05, 0.2)}


def open_bench(
    folder: Path,
    cache: Path,
    experts: int = 2,
    dtype: str = "float32",
    climb: str = "loglikelihood",
    **changes: Any,
) -> Workbench:
    sources = {name: Source(model=str(folder / "models" / name)) for name in ("ant", "bee")[:experts]}
    surveyed = survey.survey_models(Source(model=str(folder / "models/base")), sources, dtype)
    search = [
        {"task": "first", "metric": "acc", "climb": climb},
        {"task": "second", "metric": "acc", "climb": "probability", "weight": 3.0},
    ]
    fitness = Fitness.model_validate(
        {**FITNESS, "include": str(folder / "tasks"), "search": search, "limit": 6, **changes}
    )
    return Workbench(
        Setup(surveyed.base, surveyed.experts, surveyed.dtype, str(cache), fitness=fitness, entries=fitness.search)
    )


def laid(bench: Workbench) -> CommonRecipe:
    setup = bench.setup
    return CommonRecipe(setup.base, setup.experts, bench.merger.layers, setup.dtype, seed=3)


def everything(method: str, options: Mapping[str, bool] | None = None, **changes: Any) -> SearchSpace:
    """A space with every parameter that has a slope, along every axis."""
    module = methods.load(method)
    genes: dict[str, Any] = {}
    fixed: dict[str, Any] = dict(options or {})
    for parameter in module.PARAMETERS:
        if parameter.name not in methods.differentiable(module):
            fixed[parameter.name] = SELECTING.get(parameter.name, parameter.default)
            continue
        low, high = (NEARSWAP if method == "nearswap" else RANGES)[parameter.name]
        per = ["layer", "module", *(["expert"] if parameter.per_expert else [])]
        genes[parameter.name] = {"low": low, "high": high, "per": per}
    return SearchSpace.model_validate(
        {"method": method, "layers": DEPTH, "modules": MODULES, "genes": genes, "fixed": fixed, **changes}
    )


def some_genome(chosen: SearchSpace, frame: CommonRecipe, seed: int = 0) -> dict[str, float]:
    draw = np.random.default_rng(seed)
    return {one.name: draw.uniform(one.low, one.high) for one in decoding.coordinates(chosen, frame)}


class InFloat64(TorchFunctionMode):
    """Keeps float64 where a model's code asks for float32, as norms do."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        if function is torch.Tensor.float and args[0].dtype == torch.float64:
            return args[0]
        wide = [torch.float64 if one is torch.float32 else one for one in args]
        named = {key: torch.float64 if one is torch.float32 else one for key, one in (keywords or {}).items()}
        return function(*wide, **named)


class Reference:
    """The fitness in float64 from end to end, written apart: merge, model, log-probabilities."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.model = copy.deepcopy(bench.model).double().eval()
        assert bench.scorer is not None
        self.requests = bench.scorer.requests.likelihoods
        width = max(len(one.row) for one in self.requests)
        self.ids = torch.tensor([[*one.row, *([0] * (width - len(one.row)))] for one in self.requests])

        self.tables: dict[tuple[str, ...], Any] = {}

    def table(self, name: str, kind: str, which: Sequence[str]) -> Any:
        merger, key = self.bench.merger, (name, kind, *which)
        if key not in self.tables:
            self.tables[key] = tables.KINDS[kind].of(
                merger.base[name], [merger.experts[one][name] for one in which]
            )
        return self.tables[key]

    def merge(self, recipe: Recipe) -> None:
        merger = self.bench.merger
        for name, parameter in self.model.named_parameters():
            place = merger.places[name]
            method = methods.load(recipe.method_at(place))
            base, experts = merger.base[name], [merger.experts[expert][name] for expert in recipe.experts]
            inputs = TensorInputs(
                name,
                tuple(recipe.experts),
                recipe.coefficients(place),
                recipe.options[recipe.method_at(place)],
                recipe.seed,
                functools.partial(self.table, name),
            )
            scalars = method.scalars(inputs)
            threshold = scalars.get("threshold")
            if isinstance(threshold, list):  # what ties with it in float32 does not in float64
                scalars["threshold"] = [(1.0 - 1e-6) * one for one in threshold]
            along = next((kind for kind in ("rows", "columns") if _has(scalars, kind)), "flat")
            shape = shape_along(base.shape, along)
            s = {key: _tensor(value) for key, value in scalars.items()}
            s["element"] = torch.arange(base.numel(), dtype=torch.int32).view(shape)
            merged = method.merge(
                base.double().view(shape), [one.double().view(shape) for one in experts], s, inputs.options
            )
            parameter.data = merged.view(base.shape)

    @torch.no_grad()
    def value(self, recipe: Recipe) -> float:
        """A quarter of the first task's climbed metric, and three of the second's probability."""
        self.merge(recipe)
        with InFloat64():
            logits = self.model(input_ids=self.ids, use_cache=False).logits.log_softmax(-1)
        sums = []
        for line, one in zip(logits.numpy(), self.requests, strict=True):
            scored = range(len(one.row) - len(one.answer), len(one.row))
            sums.append(float(line[scored, one.answer].sum()))
        scorer, by_task, at = self.bench.scorer, {}, 0
        assert scorer is not None
        for entry in self.bench.setup.entries:
            built = scorer.tasks[entry.task]
            right = golds(built)
            assert right is not None
            values = []
            for document, gold in enumerate(right):
                count = len(built.documents[document].instances)
                metrics = choice_metrics(np.array(sums[at : at + count]), gold)
                values.append(math.log(metrics["probability"]) if entry.climbs == "acc" else metrics[entry.climbs])
                at += count
            by_task[entry.task] = float(np.mean(values))
        return (by_task["first"] + 3.0 * by_task["second"]) / 4.0


def _has(scalars: Mapping[str, Any], kind: str) -> bool:
    return any(isinstance(value, ByRow if kind == "rows" else ByColumn) for value in scalars.values())


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, ByRow | ByColumn):
        return torch.from_numpy(value.array).double()
    return torch.tensor(value, dtype=torch.int32 if type(value[0]) is int else torch.float64)


def slopes(
    reference: Reference, chosen: SearchSpace, frame: CommonRecipe, genome: Mapping[str, float]
) -> dict[str, float]:
    """Central differences of the fitness in each coordinate."""

    def value(name: str, step: float) -> float:
        return reference.value(decoding.decode(chosen, frame, {**genome, name: genome[name] + step}))

    return {name: (value(name, STEP) - value(name, -STEP)) / (2.0 * STEP) for name in genome}


def assert_equal(found: Mapping[str, float], wanted: Mapping[str, float]) -> None:
    """To 10⁻³ of each derivative. A float32 model knows those near 0 to 3·10⁻⁵ of the largest and no better."""
    assert set(found) == set(wanted)
    largest = max(map(abs, wanted.values()))
    assert largest > 1e-3
    for name, slope in wanted.items():
        assert found[name] == pytest.approx(slope, rel=1e-3, abs=5e-5 * largest), name


def pulled(bench: Workbench, chosen: SearchSpace, genome: Mapping[str, float]) -> dict[str, float]:
    """The gradient in the genome's coordinates."""
    frame = laid(bench)
    _, tables_of = bench.gradient(decoding.decode(chosen, frame, genome))
    return decoding.pull_back(chosen, frame, genome, tables_of)


def bench_for(coarse: Path, cache: Path, method: str, **changes: Any) -> Workbench:
    return open_bench(coarse, cache, min(2, plugins.load("methods", method).EXPERTS[1] or 2), **changes)


def check(bench: Workbench, chosen: SearchSpace, seed: int = 0) -> None:
    frame = laid(bench)
    genome = some_genome(chosen, frame, seed)
    assert_equal(pulled(bench, chosen, genome), slopes(Reference(bench), chosen, frame, genome))
