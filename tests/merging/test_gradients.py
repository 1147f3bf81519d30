"""The gradient through the merge is the slope of the real fitness: finite differences in float64 say so."""

from __future__ import annotations

import copy
import functools
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig

from evomerge import plugins
from evomerge.errors import CandidateError
from evomerge.merging import gradients, methods
from evomerge.merging.kernels import passes, tables
from evomerge.merging.merger import Merger
from evomerge.merging.methods import ByColumn, ByRow, TensorInputs
from evomerge.models import survey
from evomerge.models.source import Source
from evomerge.recipes.recipe import OperatorStep, Recipe
from evomerge.scoring.fitness import Fitness
from evomerge.scoring.smooth_metrics import choice_metrics, golds
from evomerge.searching.spaces import decoding
from evomerge.searching.spaces.decoding import CommonRecipe
from evomerge.searching.spaces.space import SearchSpace
from evomerge.studies.candidates.workbench import Setup, Workbench
from tests.helpers.family import FITNESS, make_tokenizer, save_family

METHODS = plugins.names("methods")
STEP = 1e-7  # of finite differences in float64; so small that no elected sign changes and no element is reached
DEPTH, MODULES = {"anchors": 2}, ["*q_proj*", "mlp"]
# What is not searched, or cannot be: the selecting parameters, each where it selects.
SELECTING = {"density": 0.6, "epsilon": 0.1, "gamma": 0.05, "select_topk": 1.0}
RANGES = {"t": (0.2, 0.8), "weight": (0.2, 0.9), "lambda": (0.6, 1.2), "scale": (0.8, 1.2)}
NEARSWAP = {"t": (0.05, 0.2)}


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family in bfloat16, to be merged in float32: its task vectors are exact, so that thresholds select in
    float64 what they select in float32."""
    return save_family(tmp_path_factory.mktemp("coarse"), torch.bfloat16)


def open_bench(
    folder: Path,
    cache: Path,
    experts: int = 2,
    dtype: str = "float32",
    climb: str = "loglikelihood",
    **changes: Any,
) -> Workbench:
    sources = {name: Source(model=str(folder / "models" / name)) for name in ("ant", "bee")[:experts]}
    found = survey.survey_models(Source(model=str(folder / "models/base")), sources, dtype)
    search = [
        {"task": "first", "metric": "acc", "climb": climb},
        {"task": "second", "metric": "acc", "climb": "probability", "weight": 3.0},
    ]
    fitness = Fitness.model_validate(
        {**FITNESS, "include": str(folder / "tasks"), "search": search, "limit": 6, **changes}
    )
    return Workbench(
        Setup(found.base, found.experts, found.dtype, str(cache), fitness=fitness, entries=fitness.search)
    )


def laid(bench: Workbench) -> CommonRecipe:
    setup = bench.setup
    return CommonRecipe(setup.base, setup.experts, bench.merger.layers, setup.dtype, seed=3)


def everything(method: str, options: Mapping[str, bool] | None = None, **changes: Any) -> SearchSpace:
    """A space with every parameter that has a slope, along every axis."""
    module = plugins.load("methods", method)
    genes: dict[str, Any] = {}
    fixed: dict[str, Any] = dict(options or {})
    for parameter in module.PARAMETERS:
        if parameter.name not in methods.differentiable(module):
            fixed[parameter.name] = SELECTING[parameter.name]
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
        self.requests = bench.scorer._likelihoods
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
            method = plugins.load("methods", recipe.method_at(place))
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
            if "threshold" in scalars:  # what ties with it in float32 does not in float64
                scalars["threshold"] = [(1.0 - 1e-6) * one for one in scalars["threshold"]]
            along = next((kind for kind in ("rows", "columns") if _has(scalars, kind)), "flat")
            shape = passes._shape(base, along)
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
        scorer, found, at = self.bench.scorer, {}, 0
        assert scorer is not None
        for entry in self.bench.setup.entries:
            built = scorer._tasks[entry.task]
            right = golds(built)
            assert right is not None
            values = []
            for document, gold in enumerate(right):
                count = len(built.documents[document].instances)
                metrics = choice_metrics(np.array(sums[at : at + count]), gold)
                values.append(math.log(metrics["probability"]) if entry.climbs == "acc" else metrics[entry.climbs])
                at += count
            found[entry.task] = float(np.mean(values))
        return (found["first"] + 3.0 * found["second"]) / 4.0


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
    _, found = bench.gradient(decoding.decode(chosen, frame, genome))
    return decoding.pull_back(chosen, frame, genome, found)


def bench_for(coarse: Path, cache: Path, method: str, **changes: Any) -> Workbench:
    return open_bench(coarse, cache, min(2, plugins.load("methods", method).EXPERTS[1] or 2), **changes)


def check(bench: Workbench, chosen: SearchSpace, seed: int = 0) -> None:
    frame = laid(bench)
    genome = some_genome(chosen, frame, seed)
    assert_equal(pulled(bench, chosen, genome), slopes(Reference(bench), chosen, frame, genome))


# --- every method ------------------------------------------------------------------------------------------

OPTIONS = {
    "linear": [{"normalize": False}],
    "task_arithmetic": [{"normalize": True}],
    "ties": [{"normalize": False, "rescale": True}],
    "breadcrumbs": [{"normalize": True, "rescale": True}],
    "breadcrumbs_ties": [{"normalize": True}],
    "dare_linear": [{"normalize": True, "rescale": False}],
    "dare_ties": [{"normalize": True}],
    "della": [{"normalize": False, "rescale": False}],
    "della_linear": [{"normalize": True}],
    "karcher": [{"task_vectors": True}],
    "multislerp": [{"normalize": False}, {"task_vectors": False}],
    "nuslerp": [{"task_vectors": False}, {"flatten": False}, {"flatten": False, "row_wise": True}],
    "model_stock": [{"filter_wise": True}],
}
WAYS = [(method, options) for method in METHODS for options in ({}, *OPTIONS.get(method, []))]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), WAYS, ids=str)
def test_the_gradient_is_the_slope_of_the_fitness_in_every_coordinate(
    coarse: Path, tmp_path: Path, method: str, options: dict[str, bool]
) -> None:
    check(bench_for(coarse, tmp_path, method), everything(method, options, modules=["*q_proj*"]))


def test_every_method_has_a_slope_in_some_parameter() -> None:
    assert [name for name in METHODS if not methods.differentiable(plugins.load("methods", name))] == []


def test_a_method_that_says_it_has_no_slope_is_refused(
    coarse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(coarse, tmp_path)
    chosen = everything("ties")
    recipe = decoding.decode(chosen, laid(bench), some_genome(chosen, laid(bench)))
    monkeypatch.setattr(plugins.load("methods", "ties"), "DIFFERENTIABLE", (), raising=False)
    with pytest.raises(CandidateError, match="no gradient goes through ties: none of its parameters has a slope"):
        bench.gradient(recipe)


def test_a_method_may_say_which_parameters_have_a_slope(
    coarse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, chosen = open_bench(coarse, tmp_path), everything("ties")
    genome = some_genome(chosen, laid(bench))
    monkeypatch.setattr(plugins.load("methods", "ties"), "DIFFERENTIABLE", ("lambda",), raising=False)
    for name, slope in pulled(bench, chosen, genome).items():
        assert (slope != 0.0) == name.startswith("lambda."), name


def with_density(method: str, **options: bool) -> SearchSpace:
    gene = {"low": 0.4, "high": 0.9, "per": ["layer", "module", "expert"]}
    genes = {"weight": gene, "density": gene}
    fixed = {name: options[name] for name in plugins.load("methods", method).OPTIONS if name in options}
    return SearchSpace.model_validate(
        {"method": method, "layers": "each", "modules": MODULES, "genes": genes, "fixed": fixed}
    )


DROPPING = [name for name in METHODS if "density" in [p.name for p in plugins.load("methods", name).PARAMETERS]]
AT_RANDOM = [name for name in DROPPING if plugins.load("methods", name).NEEDS_ELEMENT_NUMBERS]


@pytest.mark.slow
@pytest.mark.parametrize("method", DROPPING)
def test_the_slope_in_the_density_is_that_of_what_is_kept_on_average(
    coarse: Path, tmp_path: Path, method: str
) -> None:
    """Twice the density keeps twice as much: without a factor that undoes it, the same as twice the weight."""
    bench = open_bench(coarse, tmp_path)
    chosen = with_density(method, rescale=False, normalize=False)
    genome = some_genome(chosen, laid(bench))
    found = pulled(bench, chosen, genome)
    for name in (name for name in genome if name.startswith("density.")):
        weight = name.replace("density.", "weight.")
        wanted = found[weight] * genome[weight] / genome[name] if method in AT_RANDOM else 0.0
        assert found[name] == pytest.approx(wanted, rel=1e-6, abs=1e-12), name
    assert any(found[name] for name in found if name.startswith("density.")) == (method in AT_RANDOM)


@pytest.mark.slow
@pytest.mark.parametrize("method", AT_RANDOM)
def test_rescaled_masks_have_no_slope_in_the_density(coarse: Path, tmp_path: Path, method: str) -> None:
    bench, chosen = open_bench(coarse, tmp_path), with_density(method, rescale=True)
    found = pulled(bench, chosen, some_genome(chosen, laid(bench)))
    assert {found[name] for name in found if name.startswith("density.")} == {0.0}


# --- what is climbed, and along which axes -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("climb", ["probability", "loglikelihood", "margin", "acc"])
def test_what_is_climbed_has_the_slope_that_was_found(coarse: Path, tmp_path: Path, climb: str) -> None:
    bench = open_bench(coarse, tmp_path, climb=climb)
    check(bench, everything("task_arithmetic", modules=["mlp"], layers={"groups": 2}), seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("per", [[], ["expert"], ["layer"], ["module"], ["layer", "expert"], ["module", "expert"]])
def test_genes_may_leave_out_any_axis(coarse: Path, tmp_path: Path, per: list[str]) -> None:
    genes = {"weight": {"low": 0.2, "high": 0.9, "per": per}, "lambda": {"low": 0.6, "high": 1.2}}
    check(open_bench(coarse, tmp_path), everything("dare_linear", fixed={"density": 0.5}, genes=genes))


def test_modules_whose_values_are_equal_have_slopes_of_their_own(coarse: Path, tmp_path: Path) -> None:
    """The recipe drops rows that are equal to `*`; a search starts where all of them are."""
    bench, chosen = open_bench(coarse, tmp_path), everything("task_arithmetic")
    genome = dict.fromkeys(some_genome(chosen, laid(bench)), 0.5)
    assert "mlp" not in decoding.decode(chosen, laid(bench), genome).parameters["weight"]
    assert_equal(pulled(bench, chosen, genome), slopes(Reference(bench), chosen, laid(bench), genome))


@pytest.mark.slow
def test_modules_may_have_methods_of_their_own(coarse: Path, tmp_path: Path) -> None:
    bench, frame = open_bench(coarse, tmp_path), laid(open_bench(coarse, tmp_path))
    genes = {
        "weight": {"low": 0.2, "high": 0.9, "per": ["layer", "module", "expert"]},
        "lambda": {"low": 0.6, "high": 1.2, "per": ["module"]},
    }
    method = {"choose": ["dare_ties", "linear", "task_arithmetic"], "per": ["module"]}
    fixed = {"density": 0.6}
    chosen = SearchSpace.model_validate(
        {"method": method, "layers": DEPTH, "modules": MODULES, "genes": genes, "fixed": fixed}
    )
    draw = np.random.default_rng(0)
    choices = {"method.*q_proj*": "linear", "method.mlp": "task_arithmetic", "method.other": "dare_ties"}
    points = [one for one in decoding.coordinates(chosen, frame) if not one.choices]
    genome: dict[str, Any] = choices | {one.name: draw.uniform(one.low, one.high) for one in points}
    found = decoding.pull_back(chosen, frame, genome, bench.gradient(decoding.decode(chosen, frame, genome))[1])
    assert not set(found) & set(choices)
    assert found["lambda.*q_proj*"] == 0.0  # linear has none
    reference = Reference(bench)

    def value(name: str, step: float) -> float:
        return reference.value(decoding.decode(chosen, frame, {**genome, name: genome[name] + step}))

    assert_equal(found, {name: (value(name, STEP) - value(name, -STEP)) / (2 * STEP) for name in found})


def test_the_gradient_is_the_slope_of_what_evaluate_says(family: Path, tmp_path: Path) -> None:
    """In float32 from end to end, along the gradient, by Romberg's extrapolation."""
    bench, chosen = open_bench(family, tmp_path), everything("task_arithmetic")
    frame = laid(bench)
    genome = some_genome(chosen, frame)
    found = pulled(bench, chosen, genome)
    length = math.sqrt(sum(slope**2 for slope in found.values()))

    def value(step: float) -> float:
        moved = {name: genome[name] + step * found[name] / length for name in genome}
        return bench.evaluate(decoding.decode(chosen, frame, moved)).measured.value

    column = [(value(step) - value(-step)) / (2.0 * step) for step in (0.004, 0.002, 0.001)]
    for power in (4.0, 16.0):
        column = [(power * fine - rough) / (power - 1.0) for rough, fine in pairwise(column)]
    assert length == pytest.approx(column[0], rel=1e-3)


def test_the_score_is_that_of_evaluate(family: Path, tmp_path: Path) -> None:
    bench, chosen = open_bench(family, tmp_path), everything("task_arithmetic")
    recipe = decoding.decode(chosen, laid(bench), some_genome(chosen, laid(bench)))
    documents = {"first": [4, 1], "second": [5]}
    for asked in (None, documents):
        score, _ = bench.gradient(recipe, asked)
        wanted = bench.evaluate(recipe, asked)
        assert score.measured.value == pytest.approx(wanted.measured.value, abs=1e-5)
        assert score.measured.climbed == pytest.approx(wanted.measured.climbed, abs=1e-5)
        assert score.weights_sha256 == wanted.weights_sha256
        for task, own in score.report.tasks.items():
            same = wanted.report.tasks[task]
            assert own.documents.tolist() == same.documents.tolist()
            for metric, values in own.metrics.items():
                np.testing.assert_allclose(values, same.metrics[metric], atol=1e-5)


def test_tasks_that_are_left_out_take_no_part(family: Path, tmp_path: Path) -> None:
    bench, chosen = open_bench(family, tmp_path), everything("task_arithmetic")
    recipe = decoding.decode(chosen, laid(bench), some_genome(chosen, laid(bench)))
    score, _ = bench.gradient(recipe, {"first": [0, 2]})
    assert score.measured.value == score.measured.climbed["first"]
    assert set(score.report.tasks) == {"first"}


def test_a_recipe_with_operators_is_refused(family: Path, tmp_path: Path) -> None:
    bench, chosen = open_bench(family, tmp_path), everything("task_arithmetic")
    recipe = decoding.decode(chosen, laid(bench), some_genome(chosen, laid(bench)))
    noisy = recipe.model_copy(update={"operators": (OperatorStep(name="noise"),)})
    with pytest.raises(
        CandidateError, match="the gradient does not pass through operators, but the recipe has noise"
    ):
        bench.gradient(noisy)


# --- memory, and what is left behind -----------------------------------------------------------------------


def some_recipe(bench: Workbench, method: str = "task_arithmetic") -> Recipe:
    chosen = everything(method)
    return decoding.decode(chosen, laid(bench), some_genome(chosen, laid(bench)))


@contextmanager
def counted(bench: Workbench) -> Iterator[list[int]]:
    """How many parameters' gradients are alive whenever one more has come, the new one included."""
    seen: list[weakref.ref[torch.Tensor]] = []
    counts: list[int] = []

    def count(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        seen.append(weakref.ref(parameter.grad))
        counts.append(sum(one() is not None for one in seen))

    hooks = []
    for parameter in bench.model.parameters():
        parameter.requires_grad_(True)
        hooks.append(parameter.register_post_accumulate_grad_hook(count))
    yield counts
    for hook in hooks:
        hook.remove()


def test_one_parameters_gradient_is_alive_at_once(family: Path, tmp_path: Path) -> None:
    bench = open_bench(family, tmp_path)
    assert bench.scorer is not None
    number = len(list(bench.model.parameters()))
    documents = {"first": range(6), "second": range(6)}
    with counted(bench) as kept:
        bench.scorer.backward(documents, {"first": ("margin", 1.0), "second": ("margin", 1.0)})
    assert max(kept) == number  # where nobody takes them
    bench.model.zero_grad()
    with counted(bench) as counts:
        bench.gradient(some_recipe(bench))
    assert len(counts) >= number
    assert set(counts) == {1}


def assert_untouched(bench: Workbench) -> None:
    for name, parameter in bench.model.named_parameters():
        assert parameter.grad is None, name
        assert parameter.requires_grad == ("norm" not in name), name
        assert not parameter._post_accumulate_grad_hooks, name
    for module in bench.model.modules():
        assert "forward" not in module.__dict__


def test_nothing_is_left_behind(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = open_bench(family, tmp_path)
    for name, parameter in bench.model.named_parameters():
        parameter.requires_grad_("norm" not in name)
    _, wanted = bench.gradient(some_recipe(bench))
    assert_untouched(bench)
    whole = gradients.pull_back
    calls = []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("provoked")
        return whole(*arguments)

    monkeypatch.setattr(gradients, "pull_back", failing)
    with pytest.raises(RuntimeError, match="provoked"):
        bench.gradient(some_recipe(bench))
    assert_untouched(bench)
    assert bench.gradient(some_recipe(bench))[1] == wanted


def test_a_pass_that_runs_out_of_memory_half_way_is_not_counted_twice(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(family, tmp_path)
    _, wanted = bench.gradient(some_recipe(bench))
    whole = gradients.pull_back
    calls = []

    def short(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise torch.OutOfMemoryError("provoked")
        return whole(*arguments)

    monkeypatch.setattr(gradients, "pull_back", short)
    score, found = bench.gradient(some_recipe(bench))
    assert len(calls) > 2 * 38
    for row, experts in wanted["weight"].items():
        for expert, slopes_of in experts.items():
            assert found["weight"][row][expert] == pytest.approx(slopes_of, rel=1e-4, abs=1e-6)
    assert len(score.report.tasks["first"].documents) == 6


def test_where_the_checkpoints_lie_changes_nothing(family: Path, tmp_path: Path) -> None:
    bench = open_bench(family, tmp_path)
    recipe = some_recipe(bench, "dare_ties")
    _, wanted = bench.gradient(recipe)
    for residency in ("resident", "streamed"):
        held = bench.merger
        bench.merger = Merger(bench.model, held.base, held.experts, tmp_path, residency=residency)
        assert bench.gradient(recipe)[1] == wanted


@pytest.mark.slow
def test_blocks_change_nothing_but_the_last_digits(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(family, tmp_path)
    for method in ("dare_ties", "della", "nuslerp"):
        chosen = everything(method, {"flatten": False, "row_wise": True} if method == "nuslerp" else {})
        genome = some_genome(chosen, laid(bench))
        monkeypatch.setattr(gradients, "_BLOCK", 1 << 17)
        wanted = pulled(bench, chosen, genome)
        monkeypatch.setattr(gradients, "_BLOCK", 100)
        found = pulled(bench, chosen, genome)
        largest = max(map(abs, wanted.values()))
        assert found == {name: pytest.approx(slope, rel=1e-4, abs=1e-6 * largest) for name, slope in wanted.items()}


def test_a_gradient_that_is_not_finite_is_no_gradient(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(family, tmp_path)
    whole = gradients.pull_back
    monkeypatch.setattr(gradients, "pull_back", lambda part, g, *rest: whole(part, g * math.inf, *rest))
    with pytest.raises(CandidateError, match=r"model.embed_tokens.weight: the derivative in weight is not finite"):
        bench.gradient(some_recipe(bench))


# --- other dtypes and families -----------------------------------------------------------------------------


def test_bfloat16_models_have_gradients_too(coarse: Path, tmp_path: Path) -> None:
    """Those of the weights are the model's, as coarse as it computes; what is made of them is exact to float32."""
    bench, chosen = open_bench(coarse, tmp_path, dtype="bfloat16"), everything("task_arithmetic")
    frame = laid(bench)
    genome = some_genome(chosen, frame)
    found = pulled(bench, chosen, genome)
    assert bench.scorer is not None
    documents = {"first": range(6), "second": range(6)}
    bench.model.requires_grad_(True)
    bench.scorer.backward(documents, {"first": ("loglikelihood", 0.25), "second": ("probability", 0.75)})
    pairs = []
    for coordinate, slope in found.items():
        tiny = [
            decoding.decode(chosen, frame, {**genome, coordinate: genome[coordinate] + step})
            for step in (0.0, 1e-3)
        ]
        wanted = 0.0
        for name, parameter in bench.model.named_parameters():
            files = bench.merger.base, *bench.merger.experts.values()
            base, *experts = (one[name].double() for one in files)
            rises = []
            for recipe in tiny:
                values = recipe.coefficients(bench.merger.places[name])
                weights = [values["lambda"][0] * one for one in values["weight"]]
                rises.append(sum(w * (one - base) for w, one in zip(weights, experts, strict=True)))
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.bfloat16
            wanted += float((parameter.grad.double() * (rises[1] - rises[0])).sum()) / 1e-3
        pairs.append((slope, wanted))
    largest = max(abs(wanted) for _, wanted in pairs)
    assert all(slope == pytest.approx(wanted, rel=1e-4, abs=1e-5 * largest) for slope, wanted in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "slerp"])
def test_bfloat16_gradients_point_where_those_of_float32_do(coarse: Path, tmp_path: Path, method: str) -> None:
    found, chosen = {}, everything(method)
    for dtype in ("float32", "bfloat16"):
        bench = bench_for(coarse, tmp_path / dtype, method, dtype=dtype)
        found[dtype] = pulled(bench, chosen, some_genome(chosen, laid(bench)))
    pairs = np.array([[found["bfloat16"][name], slope] for name, slope in found["float32"].items()])
    cosine = pairs.prod(axis=1).sum() / np.sqrt(np.square(pairs).sum(axis=0).prod())
    assert cosine > 0.9  # a random model in bfloat16 is another model: its scores differ by percents too


SIZES: dict[str, Any] = {
    "vocab_size": 14,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
GEMMA = {**SIZES, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES = {
    "gpt2": lambda: GPT2Config(
        vocab_size=14, n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
    ),
    "gemma3-tied": lambda: Gemma3TextConfig(**GEMMA),
    "gemma3-capped": lambda: Gemma3TextConfig(**GEMMA, final_logit_softcapping=5.0),
    "llama-untied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("family_name", FAMILIES)
def test_other_families_have_gradients_too(coarse: Path, tmp_path: Path, family_name: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "tasks").symlink_to(coarse / "tasks")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family_name](), dtype=torch.float32)
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for folder in ("base", "ant", "bee"):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state[name] + (0.1 * torch.randn_like(parameter) if folder != "base" else 0.0))
        model.save_pretrained(tmp_path / "models" / folder)
        make_tokenizer().save_pretrained(tmp_path / "models" / folder)
    chosen = everything("task_arithmetic", modules=["attention", "mlp"])
    check(open_bench(tmp_path, tmp_path / "cache"), chosen)
