from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import plugins
from evomerge.errors import ConfigError
from evomerge.merging import model_stock
from evomerge.models import survey
from evomerge.models.source import Source
from evomerge.models.tensor_names import Place
from evomerge.searching.spaces import known_points
from evomerge.searching.spaces.decoding import CommonRecipe, LaidOut
from evomerge.searching.spaces.genes import Coordinate
from evomerge.searching.spaces.space import SearchSpace
from evomerge.studies import warm_start
from evomerge.studies.candidates.setup import Setup, open_inputs

WEIGHT = {"low": 0.0, "high": 1.5, "per": ["layer", "module", "expert"]}
POINTS = [
    Coordinate("weight.g0", 0.1, 1.0, 0.5, log=True),
    Coordinate("weight.g1", 0.0, 1.0, 0.4, log=False, step=0.2),
    Coordinate("method", 0.0, 1.0, "ties", False, ("ties", "della")),
]
INIT: dict[str, Any] = {"weight.g0": 0.5, "weight.g1": 0.4, "method": "ties"}


# --- points that an experiment names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        ({"weight.g0": 0.3, "weight.g1": 0.6, "method": "della"}, {"weight.g0": 0.3, "weight.g1": 0.6}),
        ({"weight.g0": 0.0}, {"weight.g0": 0.1}),  # a log scale has no 0
        ({"weight.g1": 0.73, "density": 0.2}, {"weight.g1": 0.8}),
        ({"weight.g0": 7.0, "method": "slerp"}, {"weight.g0": 1.0}),  # a choice that is none here
    ],
)
def test_an_earlier_point_is_taken_as_far_as_it_fits(earlier: dict[str, Any], expected: dict[str, Any]) -> None:
    method = {"method": "della"} if earlier.get("method") == "della" else {}
    assert known_points.resolve(POINTS, ["there"], {"there": earlier}) == ({**INIT, **expected, **method},)


def test_starts_that_are_whole_stay_as_they_are_to_the_last_bit() -> None:
    units = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    drawn = [{p.name: p.from_unit(unit) for p, unit in zip(POINTS, row, strict=True)} for row in units]
    assert known_points.resolve(POINTS, drawn, {}) == tuple(drawn)


def test_a_start_may_name_some_coordinates_only() -> None:
    assert known_points.resolve(POINTS, [{"weight.g1": 1}], {}) == ({**INIT, "weight.g1": 1.0},)


def test_all_starts_that_do_not_fit_are_told_at_once() -> None:
    starts: list[Any] = [
        {"weight.g2": 0.5},
        "there",
        {"weight.g0": 2.0, "weight.g1": 0.5, "method": "slerp"},
        {"method": 1.0},
    ]
    with pytest.raises(ConfigError) as caught:
        known_points.resolve(POINTS, starts, {"there": {"density": 0.5}})
    assert list(caught.value.faults) == [
        "0.weight.g2: is no coordinate of the space. Did you mean 'weight.g1'? "
        "Known: method, weight.g0, weight.g1.",
        "there searched another space: none of its coordinates is in this one",
        "2.weight.g0: must be a number in [0.1, 1], but is 2.0",
        "2.weight.g1: must be a number in [0, 1], in steps of 0.2 from 0, but is 0.5",
        "2.method: must be one of ties, della, but is slerp",
        "3.method: must be one of ties, della, but is 1.0",
    ]


# --- model stock -------------------------------------------------------------------------------------------


def made(folder: Path, **changes: Any) -> tuple[Setup, LaidOut, dict[str, Place]]:
    """What model stock's point is made from, on the family's checkpoints or those of changed names."""
    experts = {name: Source(model=str(folder / "models" / name)) for name in changes.pop("experts", ("ant", "bee"))}
    found = survey.survey_models(Source(model=str(folder / "models/base")), experts, "auto")
    data = {
        "method": "task_arithmetic",
        "layers": {"groups": 2},
        "modules": ["attention", "mlp"],
        "genes": {"weight": WEIGHT},
    }
    setup = Setup(found.base, found.experts, found.dtype, str(changes.pop("cache")))
    common = CommonRecipe(found.base, found.experts, found.layers, found.dtype, 0)
    return setup, LaidOut(SearchSpace.model_validate({**data, **changes}), common), found.places


def cosine_weight(setup: Setup, name: str) -> float:
    """t/K of one tensor of two experts, t = 2c/(1 + c), straight from the paper."""
    base, experts = open_inputs(setup)
    first, second = ((experts[one][name].double() - base[name].double()).flatten() for one in ("ant", "bee"))
    cosine = float(first @ second / (first.norm() * second.norm()))
    return min(max(cosine / (1.0 + cosine), 0.0), 0.5)


def alike(folder: Path, family: Path) -> Path:
    """The family with experts that have much in common: model stock's t is far from 0."""
    shutil.copytree(family / "models", folder / "models")
    common = load_file(family / "models/ant/model.safetensors")
    path = folder / "models/bee/model.safetensors"
    own = load_file(path)
    mixed = {name: 0.5 * own[name] + 0.5 * common[name] for name in own}
    save_file(mixed, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def kin(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alike(tmp_path_factory.mktemp("kin"), family)


def test_model_stocks_weights_are_the_means_of_its_ratio_by_elements(kin: Path, tmp_path: Path) -> None:
    setup, laid, sat = made(kin, cache=tmp_path)
    found = warm_start.model_stock(setup, laid, sat)
    assert found is not None
    base, _ = open_inputs(setup)
    laid_out = sat
    for group, layers in (("g0", (0, 1)), ("g1", (2, 3))):
        covered = [name for name, place in laid_out.items() if place.module == "mlp" and place.layer in layers]
        sizes = [base[name].numel() for name in covered]
        shares = [cosine_weight(setup, name) for name in covered]
        mean = sum(n * share for n, share in zip(sizes, shares, strict=True)) / sum(sizes)
        assert 0.2 < mean < 0.5
        for expert in ("ant", "bee"):
            assert found[f"weight.{group}.mlp.{expert}"] == pytest.approx(mean, abs=5.1e-5)


def test_model_stocks_point_is_its_model_where_every_tensor_has_a_weight(kin: Path, tmp_path: Path) -> None:
    names = list(made(kin, cache=tmp_path)[-1])
    setup, laid, sat = made(kin, cache=tmp_path, modules=names, layers={"groups": 1})
    found = warm_start.model_stock(setup, laid, sat)
    assert found is not None
    for name in names:
        assert found[f"weight.g0.{name}.ant"] == pytest.approx(cosine_weight(setup, name), abs=5.1e-5)


def test_the_weights_allow_for_lambda(kin: Path, tmp_path: Path) -> None:
    setup, laid, sat = made(kin, cache=tmp_path, modules=[], genes={"weight": {"low": 0, "high": 5}})
    plain = warm_start.model_stock(setup, laid, sat)
    halved = laid.space.model_copy(update={"fixed": {"lambda": 0.5}})
    doubled = warm_start.model_stock(setup, LaidOut(halved, laid.common), sat)
    assert plain is not None
    assert doubled is not None
    assert doubled["weight"] == pytest.approx(2 * float(plain["weight"]), abs=2e-4)


def test_angles_are_measured_once_and_found_again(kin: Path, tmp_path: Path) -> None:
    told: list[str] = []
    first = warm_start.model_stock(*made(kin, cache=tmp_path), told.append)
    assert told == ["measuring angles for a warm start"]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert warm_start.model_stock(*made(kin, cache=tmp_path), told.append) == first
    assert len(told) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert warm_start.model_stock(*made(kin, cache=tmp_path / "elsewhere")) == first


def test_tensors_that_no_expert_changes_take_no_part(family: Path, kin: Path, tmp_path: Path) -> None:
    shutil.copytree(kin / "models", tmp_path / "models")
    base = load_file(kin / "models/base/model.safetensors")
    for expert in ("ant", "bee"):
        path = tmp_path / "models" / expert / "model.safetensors"
        tensors = {name: base[name] if "mlp" in name else own for name, own in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    changes: dict[str, Any] = {"modules": ["attention"], "genes": {"weight": {**WEIGHT, "init": 1.25}}}
    whole = warm_start.model_stock(*made(kin, cache=tmp_path / "whole", **changes))
    part = warm_start.model_stock(*made(tmp_path, cache=tmp_path / "part", **changes))
    assert whole is not None
    assert part is not None
    assert part["weight.g1.attention.ant"] == whole["weight.g1.attention.ant"]
    assert float(part["weight.g0.other.ant"]) > 0.1, "the embedding and the norms alone, not pulled to 0"


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": ("ant",)},
        {"method": "linear"},
        {"method": "dare_ties", "fixed": {"density": 0.5}},
        {"fixed": {"normalize": True}},
        {"genes": {"lambda": {"low": 0.0, "high": 1.0}}, "fixed": {"weight": 1.0}},
        {"genes": {"weight": WEIGHT, "source": {}}},
    ],
    ids=str,
)
def test_there_is_none_where_weights_are_no_shares_of_task_vectors(
    family: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert warm_start.model_stock(*made(family, cache=tmp_path, **changes)) is None
    assert not any(tmp_path.iterdir()), "nothing was measured for it"


def test_all_experts_take_part_by_the_first_method_that_adds_up(kin: Path, tmp_path: Path) -> None:
    genes = {"weight": {"low": 0.0, "high": 1.0}, "density": {"low": 0.1, "high": 1.0}, "switch": {"init": "off"}}
    found = warm_start.model_stock(
        *made(kin, cache=tmp_path, method=["ties", "dare_linear"], modules=[], genes=genes)
    )
    assert found is not None
    assert (found["method"], found["switch"], found["density"]) == ("dare_linear", "on", 0.55)


def test_methods_that_add_up_are_found_by_asking_them() -> None:
    adding = {
        name
        for name in plugins.names("methods")
        if model_stock.adds_up(name, plugins.load("methods", name).OPTIONS)
    }
    assert adding == {"breadcrumbs", "dare_linear", "della_linear", "task_arithmetic"}
    assert not model_stock.adds_up("task_arithmetic", {"normalize": True})


def test_the_point_is_one_of_the_space(kin: Path, tmp_path: Path) -> None:
    setup, laid, sat = made(kin, cache=tmp_path, genes={"weight": {**WEIGHT, "low": 0.3, "high": 0.4}})
    found = warm_start.model_stock(setup, laid, sat)
    assert found is not None
    assert known_points.resolve(laid.coordinates, [found], {}) == (found,)
