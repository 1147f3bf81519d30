"""The gradient through the merge is the slope of the real fitness: finite differences in float64 say so."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge import plugins
from evomerge.errors import CandidateError
from evomerge.merging import methods
from evomerge.recipes.recipe import OperatorStep
from evomerge.searching.spaces import decoding
from evomerge.searching.spaces.space import SearchSpace
from tests.helpers.gradients import (
    DEPTH,
    MODULES,
    STEP,
    Reference,
    assert_equal,
    bench_for,
    check,
    everything,
    laid,
    open_bench,
    pulled,
    slopes,
    some_genome,
)
from tests.helpers.objectives import chosen as chosen_documents

METHODS = plugins.names("methods")
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
    assert [name for name in METHODS if not methods.differentiable(methods.load(name))] == []


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
        return bench.evaluate(decoding.decode(chosen, frame, moved)).value

    column = [(value(step) - value(-step)) / (2.0 * step) for step in (0.004, 0.002, 0.001)]
    for power in (4.0, 16.0):
        column = [(power * fine - rough) / (power - 1.0) for rough, fine in pairwise(column)]
    assert length == pytest.approx(column[0], rel=1e-3)


def test_the_score_is_that_of_evaluate(family: Path, tmp_path: Path) -> None:
    bench, chosen = open_bench(family, tmp_path), everything("task_arithmetic")
    recipe = decoding.decode(chosen, laid(bench), some_genome(chosen, laid(bench)))
    documents = chosen_documents(bench.objective, {"first": [4, 1], "second": [5]})
    for asked in (None, documents):
        score, _ = bench.gradient(recipe, asked)
        wanted = bench.evaluate(recipe, asked)
        assert score.value == pytest.approx(wanted.value, abs=1e-5)
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
    score, _ = bench.gradient(recipe, chosen_documents(bench.objective, {"first": [0, 2]}))
    assert score.value == score.measured.climbed["first"]
    assert set(score.report.tasks) == {"first"}


def test_a_recipe_with_operators_is_refused(family: Path, tmp_path: Path) -> None:
    bench, chosen = open_bench(family, tmp_path), everything("task_arithmetic")
    recipe = decoding.decode(chosen, laid(bench), some_genome(chosen, laid(bench)))
    noisy = recipe.model_copy(update={"operators": (OperatorStep(name="noise"),)})
    with pytest.raises(
        CandidateError, match="the gradient does not pass through operators, but the recipe has noise"
    ):
        bench.gradient(noisy)
