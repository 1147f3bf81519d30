"""Code that a folder brings along runs where a person says so, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import CheckpointError
from evomerge.models.custom_code import refuse_custom_code
from evomerge.models.loading import load_model, load_tokenizer
from evomerge.models.source import Source
from evomerge.models.survey import survey_models
from evomerge.recipes.files import read_recipe_file, recipe_to_yaml
from evomerge.results.exporting.folder import export_recipe
from tests.helpers.family import save_family
from tests.helpers.inputs import silent
from tests.helpers.whole import tensors, write_recipe

_CONFIG = """from transformers import LlamaConfig


class Mine(LlamaConfig):
    model_type = "mine"
"""
_MODEL = """from pathlib import Path

from transformers import LlamaForCausalLM

from .configuration_mine import Mine

Path({ran!r}).touch()


class MineForCausalLM(LlamaForCausalLM):
    config_class = Mine
"""
_CLASSES = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A base of a class of its own, which leaves a file `ran` behind when its code runs, and an expert."""
    save_family(tmp_path, layers=2)
    base = tmp_path / "models/base"
    (base / "configuration_mine.py").write_text(_CONFIG)
    (base / "modeling_mine.py").write_text(_MODEL.format(ran=str(tmp_path / "ran")))
    change(base / "config.json", model_type="mine", auto_map=_CLASSES, architectures=["MineForCausalLM"])
    return tmp_path


def test_a_folder_that_needs_its_own_code_is_refused_by_name(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks"))
    with pytest.raises(CheckpointError) as caught:
        survey_models(
            Source(model=str(mine / "models/base")), {"ant": Source(model=str(mine / "models/ant"))}, "auto"
        )
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"base: {mine / 'models/base/config.json'} asks for Python code")
    assert "configuration_mine.py, modeling_mine.py" in str(caught.value)
    assert "trust_remote_code: true" in str(caught.value)
    assert not (mine / "ran").exists()


def test_code_that_is_trusted_runs_and_goes_along(mine: Path, tmp_path: Path) -> None:
    experts = {"ant": mine / "models/ant"}
    options: dict[str, Any] = {"method": "linear", "parameters": {"weight": 1.0}}
    file = write_recipe(tmp_path / "r.yaml", mine / "models/base", experts, **options)
    data = json.loads(file.read_text())
    data["base"] = {"model": data["base"], "trust_remote_code": True}
    file.write_text(json.dumps(data))
    out = export_recipe(file, tmp_path / "out", silent)
    assert (mine / "ran").exists()
    found, wanted = tensors(out), tensors(mine / "models/ant")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    model = load_model(out, "float32", "cpu", trust=True)
    assert type(model).__name__ == "MineForCausalLM"
    again = read_recipe_file(out / "recipe.yaml")
    assert again.base.trusted
    assert not again.experts["ant"].trusted
    assert recipe_to_yaml(again).count("trust_remote_code") == 1


def test_code_beside_a_class_that_transformers_has_is_passed_over(mine: Path) -> None:
    change(mine / "models/ant/config.json", auto_map=_CLASSES)
    refuse_custom_code(mine / "models/ant", trust=False)
    assert type(load_model(mine / "models/ant", "float32", "cpu")).__name__ == "LlamaForCausalLM"


def test_a_tokenizer_with_code_of_its_own_is_refused(mine: Path) -> None:
    own = {"AutoTokenizer": ["tokenization_mine.MineTokenizer", None]}
    change(mine / "models/ant/tokenizer_config.json", auto_map=own, tokenizer_class="MineTokenizer")
    with pytest.raises(
        CheckpointError, match=r"tokenizer_config\.json asks for Python code .*tokenization_mine\.py"
    ):
        load_tokenizer(mine / "models/ant")


def test_no_trust_is_the_same_as_none_given() -> None:
    assert Source.model_validate({"model": "a", "trust_remote_code": False}) == Source(model="a")
