from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evomerge import plugins
from evomerge.errors import CandidateError
from evomerge.files import hashing
from evomerge.merging import merger
from evomerge.merging.kernels.compiling import can_compile
from evomerge.models import loading, survey
from evomerge.models.source import Source
from evomerge.recipes.recipe import Recipe
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.candidates.workbench import Workbench


def open_bench(family: Path, cache: Path, **changes: Any) -> Workbench:
    sources = {name: Source(model=str(family / "models" / name)) for name in ("ant", "bee")}
    surveyed = survey.survey_models(Source(model=str(family / "models/base")), sources, "auto")
    return Workbench(Setup(surveyed.base, surveyed.experts, surveyed.dtype, str(cache), **changes))


def recipe(bench: Workbench, method: Any = "task_arithmetic", **changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "method": method,
            "base": bench.setup.base,
            "experts": dict(bench.setup.experts),
            "dtype": bench.setup.dtype,
            "layers": bench.merger.layers,
            "parameters": {"weight": 0.5},
            **changes,
        }
    )


@pytest.fixture
def bench(family: Path, tmp_path: Path) -> Workbench:
    return open_bench(family, tmp_path)


def _live(bench: Workbench) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}


def test_the_candidate_is_what_the_formula_says(bench: Workbench, family: Path) -> None:
    bench.merger.apply(recipe(bench, parameters={"weight": {"ant": 0.5, "bee": 0.25}}))
    files = {name: load_file(family / "models" / name / "model.safetensors") for name in ("base", "ant", "bee")}
    for name, live in _live(bench).items():
        base = files["base"][name]
        wanted = base + 0.5 * (files["ant"][name] - base) + 0.25 * (files["bee"][name] - base)
        torch.testing.assert_close(live, wanted, rtol=1e-6, atol=1e-6)


def test_one_whole_expert_has_the_hash_of_its_checkpoint(bench: Workbench) -> None:
    bench.merger.apply(recipe(bench, "linear", parameters={"weight": {"ant": 1.0, "bee": 0.0}}))
    assert bench.merger.sha256() == bench.setup.experts["ant"].sha256


def test_candidates_leave_no_trace_on_the_next(bench: Workbench) -> None:
    bench.merger.apply(recipe(bench, parameters={"weight": 0.3}))
    first = bench.merger.sha256()
    bench.merger.apply(recipe(bench, "ties", parameters={"weight": 1.4, "density": 0.2}))
    assert bench.merger.sha256() != first
    bench.merger.apply(recipe(bench, parameters={"weight": 0.3}))
    assert bench.merger.sha256() == first


def test_layers_and_modules_take_their_own_coefficients(bench: Workbench) -> None:
    bench.merger.apply(recipe(bench, parameters={"weight": 0.0}))
    base = _live(bench)
    bench.merger.apply(recipe(bench, parameters={"weight": {"mlp": [0.0, 0.0, 0.7, 0.0], "*": 0.0}}))
    changed = {name for name, live in _live(bench).items() if not torch.equal(live, base[name])}
    assert changed == {name for name in base if name.startswith("model.layers.2.mlp.")}


VALUES = {"weight": {"ant": 0.8, "bee": 0.6}, "density": 0.4, "t": 0.3, "select_topk": 0.6}
METHODS = [name for name in plugins.names("methods") if plugins.load("methods", name).EXPERTS[1] in (None, 2)]


def given(method: str) -> dict[str, Any]:
    """The values of a method's own parameters."""
    return {p.name: VALUES[p.name] for p in plugins.load("methods", method).PARAMETERS if p.name in VALUES}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "task_arithmetic", "linear"])
def test_compiled_and_eager_build_the_same_bits(bf16_family: Path, tmp_path: Path, method: str) -> None:
    if not can_compile(torch.device("cpu")):
        pytest.skip("no C++ compiler here")
    hashes = set()
    for compiled in ("always", "never"):
        bench = open_bench(bf16_family, tmp_path, compiled=compiled)
        bench.merger.apply(recipe(bench, method, parameters=given(method)))
        hashes.add(bench.merger.sha256())
    assert len(hashes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_where_the_checkpoints_lie_changes_no_bit(bf16_family: Path, tmp_path: Path, method: str) -> None:
    bench = open_bench(bf16_family, tmp_path)
    hashes = set()
    for residency in ("mapped", "resident", "streamed"):
        opened = merger.Merger(
            bench.merger.weights, bench.merger.base, bench.merger.experts, tmp_path, "never", residency=residency
        )
        opened.apply(recipe(bench, method, parameters=given(method)))
        hashes.add(opened.sha256())
    assert len(hashes) == 1


def test_module_groups_are_merged_by_their_own_methods(bench: Workbench) -> None:
    alone = {}
    for method in ("ties", "dare_ties", "linear"):
        bench.merger.apply(recipe(bench, method, parameters=given(method)))
        alone[method] = _live(bench)
    mixed = {"*q_proj*": "linear", "mlp": "ties", "*": "dare_ties"}
    bench.merger.apply(recipe(bench, mixed, parameters=given("ties")))
    for name, live in _live(bench).items():
        method = "linear" if "q_proj" in name else "ties" if ".mlp." in name else "dare_ties"
        assert torch.equal(live, alone[method][name]), name


def test_a_pattern_changes_only_the_tensors_that_it_matches(bench: Workbench) -> None:
    bench.merger.apply(recipe(bench, parameters={"weight": 0.0}))
    base = _live(bench)
    weight = {"model.layers.[12].*.up_proj.weight": {"bee": 0.7}, "*": 0.0}
    bench.merger.apply(recipe(bench, parameters={"weight": weight}))
    changed = {name for name, live in _live(bench).items() if not torch.equal(live, base[name])}
    assert changed == {f"model.layers.{layer}.mlp.up_proj.weight" for layer in (1, 2)}


def test_tables_are_prepared_for_every_method_before_workers_start(family: Path, tmp_path: Path) -> None:
    bench = open_bench(family, tmp_path / "unused")
    recipes = [recipe(bench, method, parameters=given(method)) for method in METHODS]
    messages: list[str] = []
    cache = tmp_path / "tables"
    for _ in range(2):
        opened = bench.merger.base, bench.merger.experts
        merger.prepare(*opened, bench.merger.places, recipes, cache, messages.append)
    assert len(messages) == len(set(messages)) == len(list(cache.glob("*.safetensors"))) > 0
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    again = open_bench(family, cache)
    for one in recipes:
        again.merger.apply(one)
    assert before == {path: path.stat().st_mtime_ns for path in cache.iterdir()}


def test_buffers_stay_those_of_the_loaded_base(bf16_family: Path, tmp_path: Path) -> None:
    bench = open_bench(bf16_family, tmp_path)
    fresh = loading.load_model(bench.folder, "bfloat16", "cpu")
    bench.merger.apply(recipe(bench))
    for (name, ours), (_, theirs) in zip(bench.model.named_buffers(), fresh.named_buffers(), strict=True):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name


def test_tied_weights_are_merged_once_and_stay_tied(bench: Workbench) -> None:
    bench.merger.apply(recipe(bench))
    assert bench.model.lm_head.weight is bench.model.model.embed_tokens.weight


def test_a_recipe_for_another_model_is_refused(bench: Workbench) -> None:
    with pytest.raises(CandidateError, match="is for 9 layers, but the model has 4"):
        bench.merger.apply(recipe(bench, layers=9))
    with pytest.raises(CandidateError, match="merges cat, which is not open here"):
        bench.merger.apply(recipe(bench, experts={"cat": Source(model="cat")}))


def test_the_hash_of_the_live_model_is_that_of_its_tensors(bench: Workbench) -> None:
    bench.merger.apply(recipe(bench))
    assert bench.merger.sha256() == hashing.sha256(_live(bench))
