"""Models of many architectures come out of a merge whole, and what is not whole shows in the zoo's table."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import zoo  # type: ignore[import-not-found]
import zoo_checks  # type: ignore[import-not-found]
import zoo_configs  # type: ignore[import-not-found]
import zoo_models  # type: ignore[import-not-found]
import zoo_rows  # type: ignore[import-not-found]
from zoo_models import Architecture
from zoo_rows import Row

# Not whole yet.
FAILING: tuple[str, ...] = ()

LLAMA = Architecture("llama", "LlamaForCausalLM")
EVERY = {one.name: one for one in zoo_models.architectures()}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in zoo.QUICK if name not in FAILING])
def test_an_architecture_is_whole(name: str, tmp_path: Path) -> None:
    row = zoo_checks.check(EVERY[name], tmp_path)
    assert (row.result, row.problems) == ("whole", [])


@pytest.mark.slow
def test_a_tensor_that_an_export_does_not_have_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = zoo_checks.export_recipe

    def spoiled(*arguments: Any) -> Path:
        out: Path = export(*arguments)
        tensors = load_file(out / "model.safetensors")
        del tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["model.norm.weight"] += 1
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return out

    monkeypatch.setattr(zoo_checks, "export_recipe", spoiled)
    row = zoo_checks.check(LLAMA, tmp_path)
    lost = "of 21 tensors 1 (model.layers.0.mlp.up_proj.weight) lost"
    assert row.result == "wrong"
    assert row.problems == [f"a: {lost}, 1 (model.norm.weight) are not the expert's", f"d: {lost}"]


def test_experts_differ_from_the_base_in_every_floating_point_tensor(tmp_path: Path) -> None:
    row = zoo_rows.build(EVERY["apertus"], tmp_path)  # has saved buffers
    base, ant, bee = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "ant", "bee"))
    assert row.tensors == len(base)
    assert base.keys() == ant.keys() == bee.keys()
    assert "model.layers.0.mlp.act_fn.beta" in base
    for name, tensor in base.items():
        assert not torch.equal(tensor, ant[name]), name
        assert not torch.equal(ant[name], bee[name]), name


def test_a_tiny_config_keeps_one_layer_of_each_kind() -> None:
    config = zoo_configs.tiny_config("gemma3_text")
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert config.num_hidden_layers == 2
    assert config.hidden_size == 32
    assert config.vocab_size == zoo_configs.VOCABULARY == len(zoo_models.make_tokenizer())


def test_every_architecture_of_transformers_is_in_the_zoo() -> None:
    assert len(EVERY) > 100
    assert set(zoo.QUICK) <= set(EVERY)
    assert len(set(zoo.QUICK)) == 20


def test_neither_a_crash_nor_a_hang_ends_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(one: Architecture, home: Path) -> Row:
        if one.name == "crash":
            os._exit(3)
        if one.name == "hang":
            time.sleep(60)
        assert home.is_dir()
        return Row(one.name, one.kind)

    monkeypatch.setattr(zoo, "_SECONDS", 4)
    monkeypatch.setattr(zoo, "_prepare", lambda: None)
    rows = list(zoo.run([Architecture(name, "") for name in ("hang", "crash", "sound")], work, 2))
    told = {row.name: (row.result, row.problems) for row in rows}
    assert told == {
        "hang": ("wrong", ["takes more than 4 s"]),
        "crash": ("wrong", ["the process ended with 3"]),
        "sound": ("built", []),
    }


@pytest.mark.slow
def test_the_table_ends_with_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "models", tmp_path / "zoo.json"
    arguments = ["--only", "llama", "gpt2", "--build-only", str(out), "--json", str(table)]
    monkeypatch.setattr(sys, "argv", ["zoo.py", *arguments])
    zoo.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("2 architectures in ")
    assert lines[-1].endswith("2 built")
    assert {row["name"] for row in json.loads(table.read_text())} == {"llama", "gpt2"}
    assert (out / "gpt2" / "ant" / "model.safetensors").is_file()


def test_an_unknown_architecture_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["zoo.py", "--only", "no_such_model"])
    with pytest.raises(SystemExit, match="has no no_such_model"):
        zoo.main()
