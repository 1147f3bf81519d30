"""A mergekit file and the recipe of its meaning merge to one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.errors import ConfigError
from evomerge.recipes import mergekit_yaml


def merged(path: Path, out: Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["merge", str(path), str(out)])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((out / "evomerge.json").read_text())
    return found


@pytest.mark.slow
def test_a_mergekit_file_and_the_recipe_of_its_meaning_are_one_model(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mergekit.yaml").write_text(
        """
        merge_method: ties
        base_model: models/base
        models:
          - {model: models/base}
          - {model: models/bee, parameters: {weight: [{filter: mlp, value: 0.8}, {value: [0.2, 0.5]}]}}
          - {model: models/ant, parameters: {weight: 0.4, density: 0.6}}
        parameters: {int8_mask: true, density: 0.5}
        dtype: float32
        """
    )
    bee = [0.2, 0.3, 0.4, 0.5]
    weight = {
        "model.norm.weight": {"ant": 0.4, "bee": 0.2},
        "*mlp*": {"ant": 0.4, "bee": 0.8},
        "*": {"ant": 0.4, "bee": bee},
    }
    recipe = {
        "method": "ties",
        "base": str(family / "models/base"),
        "experts": {name: str(family / "models" / name) for name in ("ant", "bee")},
        "parameters": {"weight": weight, "density": {"ant": 0.6, "bee": 0.5}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    monkeypatch.chdir(family)  # mergekit's paths are relative to where it runs
    theirs, ours = (
        merged(tmp_path / "mergekit.yaml", tmp_path / "theirs"),
        merged(tmp_path / "recipe.yaml", tmp_path / "ours"),
    )
    assert theirs["recipe"] == ours["recipe"]
    assert theirs["weights_sha256"] == ours["weights_sha256"]
    back = merged(tmp_path / "ours" / "mergekit.yaml", tmp_path / "back")
    assert back == ours


def test_a_model_that_mergekit_cannot_build_comes_without_a_mergekit_file(family: Path, tmp_path: Path) -> None:
    for strength in (0.5, 1.0):
        recipe = {
            "method": "sce",
            "base": str(family / "models/base"),
            "experts": {"ant": str(family / "models/ant")},
            "parameters": {"lambda": strength},
        }
        path, out = tmp_path / "recipe.yaml", tmp_path / str(strength)
        path.write_text(yaml.safe_dump(recipe))
        merged(path, out)
        assert (out / "mergekit.yaml").exists() == (strength == 1.0)
        assert ("`mergekit.yaml`" in (out / "README.md").read_text()) == (strength == 1.0)


def test_a_file_with_faults_is_named_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("{merge_method: linear, models: [{model: x, weight: 1}]}")
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "file.yaml"), str(tmp_path / "out")])
    assert result.exit_code == ConfigError.exit_code
    assert "models[0].weight: is no key here" in "".join(result.output.split("\n"))


def test_a_file_with_method_is_a_recipe() -> None:
    assert mergekit_yaml.is_one({"merge_method": "linear"})
    assert not mergekit_yaml.is_one({"method": "linear"})
    assert not mergekit_yaml.is_one({"method": "linear", "merge_method": "linear"})
