from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge import candidate, checkpoints
from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError
from evomerge.recipe import Source


@pytest.fixture
def copies(family: Path, tmp_path: Path) -> Path:
    shutil.copytree(family / "models", tmp_path / "models")
    return tmp_path / "models"


def survey(models: Path) -> candidate.Survey:
    return candidate.survey(
        Source(model=str(models / "base")),
        {name: Source(model=str(models / name)) for name in ("ant", "bee")},
        "auto",
    )


def test_tensors_are_views_of_the_file(family: Path) -> None:
    checkpoint = Checkpoint(family / "models/base", "base")
    name = next(iter(checkpoint))
    assert checkpoint[name].data_ptr() == checkpoint[name].data_ptr()


def test_sharded_and_single_files_are_the_same_checkpoint(family: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(family / "models/base", dtype=torch.float32)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    single, sharded = Checkpoint(family / "models/base", "a"), Checkpoint(tmp_path / "sharded", "b")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert single.sha256 == sharded.sha256
    assert list(single) == list(sharded)


def test_a_survey_finds_layers_dtype_and_hashes(bf16_family: Path) -> None:
    found = survey(bf16_family / "models")
    assert (found.layers, found.dtype) == (4, "bfloat16")
    assert len({found.base.sha256, *(source.sha256 for source in found.experts.values())}) == 3


def test_a_missing_folder_is_named_with_its_key(copies: Path) -> None:
    shutil.rmtree(copies / "ant")
    with pytest.raises(CheckpointError, match=r"experts\.ant: there is no model folder .*ant; check the path"):
        survey(copies)


def test_all_missing_folders_are_named_at_once(copies: Path) -> None:
    shutil.rmtree(copies / "ant")
    shutil.rmtree(copies / "bee")
    with pytest.raises(CheckpointError, match=r"(?s)experts\.ant.*experts\.bee"):
        survey(copies)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_named(copies: Path, keep: float) -> None:
    file = copies / "bee" / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match=r"experts\.bee: .*model\.safetensors is damaged"):
        survey(copies)


def test_a_missing_shard_is_named(copies: Path) -> None:
    folder = copies / "bee"
    index = {
        "weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00002.safetensors")
    }
    (folder / checkpoints.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors is missing"):
        survey(copies)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(copies: Path, text: str) -> None:
    (copies / "bee" / checkpoints.INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        survey(copies)


def _change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_expert_of_another_shape_is_named_with_the_tensor(copies: Path) -> None:
    _change(copies / "ant", "model.norm.weight", torch.ones(33))
    with pytest.raises(
        CheckpointError, match=r"experts\.ant: model\.norm\.weight has shape \[33\] .* but the base's is \[32\]"
    ):
        survey(copies)


def test_an_expert_without_a_tensor_is_named_with_it(copies: Path) -> None:
    _change(copies / "ant", "model.norm.weight", None)
    with pytest.raises(CheckpointError, match=r"experts\.ant: .* lacks model\.norm\.weight"):
        survey(copies)


def test_a_quantized_expert_is_refused(copies: Path) -> None:
    _change(copies / "ant", "model.norm.weight", torch.ones(32, dtype=torch.int8))
    with pytest.raises(CheckpointError, match=r"experts\.ant: model\.norm\.weight is torch\.int8"):
        survey(copies)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("adapter_config.json", "is a LoRA adapter"),
        ("pytorch_model.bin", "has pickled weights only"),
        ("notes.txt", "has no model.safetensors"),
    ],
)
def test_other_folders_are_refused_with_the_cure(copies: Path, file: str, message: str) -> None:
    (copies / "ant" / "model.safetensors").unlink()
    (copies / "ant" / file).write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        survey(copies)


def test_a_hub_id_without_a_network_is_one_line() -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoints.locate(Source(model="nobody/nothing", revision="v1"), "base")
    assert str(caught.value).startswith(
        "base: nobody/nothing@v1 is no folder here and cannot be fetched from the Hub"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("file", "opens"), [("config.json", "survey"), ("tokenizer.json", "tokenizer")])
def test_a_folder_that_transformers_cannot_open_is_one_line(copies: Path, file: str, opens: str) -> None:
    (copies / "base" / file).write_text("{")
    with pytest.raises(CheckpointError, match=r"transformers cannot open .*base") as caught:
        survey(copies) if opens == "survey" else candidate.load_tokenizer(copies / "base")
    assert "\n" not in str(caught.value)


def test_an_expert_that_is_not_finite_is_named_with_the_tensor(copies: Path, tmp_path: Path) -> None:
    _change(copies / "ant", "model.norm.weight", torch.full((32,), float("nan")))
    found = survey(copies)
    setup = candidate.Setup(found.base, found.experts, found.dtype, str(tmp_path / "tables"))
    with pytest.raises(CheckpointError, match=r"experts\.ant: model\.norm\.weight has values that are not finite"):
        candidate.prepare(setup, "ties", found.names, lambda text: None)
