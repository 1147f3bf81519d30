"""mergekit's filters speak of the names in the base's files, and recipes may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import ConfigError
from evomerge.results.exporting.recipe_files import read_recipe
from tests.helpers import whole
from tests.helpers.inputs import save_mixtures, silent


def read(folder: Path, data: dict[str, Any]) -> tuple[Any, list[str]]:
    """The recipe in a file of this content, and the notes on it."""
    (folder / "file.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    notes: list[str] = []
    recipe, _ = read_recipe(folder / "file.yaml", silent, notes.append)
    return recipe, notes


def filtered(folder: Path, base: str, expert: str, part: str) -> dict[str, Any]:
    weight = [{"filter": part, "value": 0.25}, {"value": 1}]
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / base),
        "models": [{"model": str(folder / expert), "parameters": {"weight": weight}}],
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with a tower, `seeing` and `near`, and the text model `blind` of the same shapes."""
    folder = tmp_path_factory.mktemp("towers")
    whole.save_seeing(folder / "seeing")
    whole.noisy(folder / "seeing", folder / "near", 1)
    whole.save_blind(folder / "blind")
    return folder


def test_a_filter_acts_on_a_tower_that_is_merged(models: Path, tmp_path: Path) -> None:
    recipe, notes = read(tmp_path, filtered(models, "seeing", "near", "visual"))
    assert not notes
    assert recipe.parameters["weight"]["*visual*"] == {"near": 0.25}


def test_a_filter_for_a_tower_that_no_expert_has_is_noted(models: Path, tmp_path: Path) -> None:
    _, (note,) = read(tmp_path, filtered(models, "seeing", "blind", "visual"))
    assert "models[0].parameters.weight[0].filter: changes nothing for model.visual." in note


def test_names_that_only_transformers_gives_are_no_filters(tmp_path: Path) -> None:
    save_mixtures(tmp_path)
    with pytest.raises(
        ConfigError, match=r"'mlp' matches no tensor in the base's files\. Known: .*block_sparse_moe"
    ):
        read(tmp_path, filtered(tmp_path, "base", "ant", "mlp"))


def test_a_recipe_names_tensors_as_its_base_does_and_as_transformers_does(tmp_path: Path) -> None:
    save_mixtures(tmp_path)

    def recipe(*patterns: str) -> dict[str, Any]:
        weight = {**dict.fromkeys(patterns, 0.25), "*": 1.0}
        experts = {"ant": str(tmp_path / "ant")}
        data = {"method": "task_arithmetic", "base": str(tmp_path / "base"), "experts": experts}
        return {**data, "parameters": {"weight": weight}}

    old, _ = read(tmp_path, recipe("*block_sparse_moe*"))
    new, _ = read(tmp_path, recipe(*(f"model.layers.*.mlp.{part}" for part in _EXPERTS)))
    assert old == new
    with pytest.raises(ConfigError, match=r"parameters\.weight\.\*w1\*: matches .*w1\.weight and not .*w3\.weight"):
        read(tmp_path, recipe("*w1*"))
    with pytest.raises(ConfigError, match=r"parameters\.weight\.\*w4\*: matches no tensor"):
        read(tmp_path, recipe("*w4*"))


_EXPERTS = ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
