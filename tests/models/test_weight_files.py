"""Which files of a folder are its checkpoint: what transformers loads from it, or a refusal by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.errors import CheckpointError
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.survey import survey_models
from evomerge.models.weight_files import INDEX, SINGLE
from tests.helpers.inputs import live, source


@pytest.fixture
def folder(family: Path, tmp_path: Path) -> Path:
    """A folder with one file of weights."""
    return shutil.copytree(family / "models/ant", tmp_path / "folder")


@pytest.fixture
def shards(family: Path, tmp_path: Path) -> Path:
    """A folder with the shards of another model."""
    model = AutoModelForCausalLM.from_pretrained(family / "models/bee")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    return tmp_path / "shards"


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder, "experts.ant")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("experts.ant: ")
    return str(caught.value)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_loaded_as_by_transformers(folder: Path) -> Checkpoint:
    found = Checkpoint(folder, "experts.ant")
    for name, tensor in live(folder).items():
        assert torch.equal(found[name], tensor), name
    return found


def test_the_single_file_goes_before_a_stale_index(folder: Path, shards: Path) -> None:
    before = Checkpoint(folder, "a").sha256
    for file in shards.glob("model*"):
        shutil.copy(file, folder)
    found = assert_loaded_as_by_transformers(folder)
    assert found.sha256 == before
    assert found.note == f"experts.ant: {folder} has {SINGLE} and {INDEX}; {SINGLE} is read, as transformers does"


@pytest.mark.parametrize("text", [None, "{", '{"weight_map": {"x": "../x"}}'])
def test_a_stale_index_beside_a_single_file_may_be_anything(folder: Path, shards: Path, text: str | None) -> None:
    shutil.copy(shards / INDEX, folder)  # its shards are gone
    if text is not None:
        (folder / INDEX).write_text(text)
    assert_loaded_as_by_transformers(folder)
    survey_models(source(folder), {"ant": source(folder)}, "auto")


def test_one_file_of_weights_needs_no_note(folder: Path, shards: Path) -> None:
    assert Checkpoint(folder, "a").note is None
    assert Checkpoint(shards, "a").note is None


def test_shards_hold_what_transformers_reads_of_them_whatever_the_index_lists(shards: Path) -> None:
    first, *_, last = sorted(shards.glob("model-*"))
    save_file({**load_file(first), "model.norm.weight": torch.ones(32)}, first, metadata={"format": "pt"})
    save_file({**load_file(last), "model.norm.weight": torch.zeros(32)}, last, metadata={"format": "pt"})
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    del weight_map["model.norm.weight"]
    change_json(shards / INDEX, weight_map=weight_map)
    assert_loaded_as_by_transformers(shards)


def test_a_tensor_that_lies_in_another_shard_than_the_index_says_is_found(shards: Path) -> None:
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    weight_map["model.norm.weight"] = next(name for name in weight_map.values() if "00001" in name)
    change_json(shards / INDEX, weight_map=weight_map)
    assert_loaded_as_by_transformers(shards)


@pytest.mark.parametrize("sharded", [False, True])
def test_the_file_that_the_config_names_goes_first(folder: Path, shards: Path, sharded: bool) -> None:
    name = "other.safetensors.index.json" if sharded else "other.safetensors"
    if sharded:
        for file in shards.glob("model-*"):
            shutil.copy(file, folder)
        shutil.copy(shards / INDEX, folder / name)
    else:
        tensors = load_file(folder / SINGLE)
        save_file({key: value + 1 for key, value in tensors.items()}, folder / name, metadata={"format": "pt"})
    change_json(folder / "config.json", transformers_weights=name)
    found = assert_loaded_as_by_transformers(folder)
    assert found.note is not None
    assert f"{name} and {SINGLE}; {name} is read" in found.note


@pytest.mark.parametrize("name", ["../x.safetensors", "/tmp/x.safetensors", "pytorch_model.bin", 3])
def test_a_config_that_names_a_file_outside_is_refused(folder: Path, name: Any) -> None:
    change_json(folder / "config.json", transformers_weights=name)
    assert f"config.json has transformers_weights: {name!r}, which is no file" in refusal(folder)


@pytest.mark.parametrize("place", ["../elsewhere/{}", "{parent}/elsewhere/{}", "x/../../elsewhere/{}", "", "."])
def test_an_index_that_names_files_outside_of_the_folder_is_refused(shards: Path, place: str) -> None:
    outside = shards.parent / "elsewhere"
    outside.mkdir()
    for file in shards.glob("model-*"):
        file.rename(outside / file.name)
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    moved = {key: place.format(name, parent=shards.parent) for key, name in weight_map.items()}
    change_json(shards / INDEX, weight_map=moved)
    assert f"{shards / INDEX} names " in refusal(shards)


def test_shards_in_a_folder_below_are_read(shards: Path) -> None:
    (shards / "below").mkdir()
    for file in shards.glob("model-*"):
        file.rename(shards / "below" / file.name)
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    change_json(shards / INDEX, weight_map={key: f"below/{name}" for key, name in weight_map.items()})
    assert_loaded_as_by_transformers(shards)


def test_a_missing_shard_is_named(shards: Path) -> None:
    lost = sorted(shards.glob("model-*"))[1]
    lost.unlink()
    assert f"{lost} is missing" in refusal(shards)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[" * 100_000, '{"weight_map": 3, "metadata": {}}', '{"weight_map": {"x": []}, "metadata": {}}'],
)
def test_a_damaged_index_is_named(shards: Path, text: str) -> None:
    (shards / INDEX).write_text(text)
    assert f"{shards / INDEX} is damaged" in refusal(shards)


def test_an_index_that_transformers_cannot_read_is_refused_with_the_cure(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    del index["metadata"]
    (shards / INDEX).write_text(json.dumps(index))
    with pytest.raises(KeyError):
        AutoModelForCausalLM.from_pretrained(shards)
    assert 'add "metadata": {}' in refusal(shards)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pytorch_model.bin", "training_args.bin"], r"has pickled weights only (pytorch_model.bin)"),
        (["consolidated.00.pth"], "has pickled weights only (consolidated.00.pth)"),
        (["training_args.bin"], "is it a model folder with safetensors?"),
        (["model.gguf"], "has no model.safetensors; transformers does not look for model.gguf"),
        (["model.fp16.safetensors", "consolidated.safetensors"], "for consolidated.safetensors, model.fp16.saf"),
        (["shard-00001-model-00001-of-00002.safetensors"], "is a distributed checkpoint (shard-00001"),
        (["adapter_config.json"], "is a LoRA adapter"),
    ],
)
def test_a_folder_without_a_checkpoint_is_refused_with_what_it_has(
    folder: Path, files: list[str], message: str
) -> None:
    (folder / SINGLE).unlink()
    for name in files:
        (folder / name).write_text("{}")
    assert message in refusal(folder)
