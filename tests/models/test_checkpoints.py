from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.errors import CheckpointError
from evomerge.models import checkpoints, loading, overlays, weight_files
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.overlays import LazyTensor
from evomerge.models.source import Source
from evomerge.models.survey import Survey, survey_models


@pytest.fixture
def copies(family: Path, tmp_path: Path) -> Path:
    shutil.copytree(family / "models", tmp_path / "models")
    return tmp_path / "models"


def survey(models: Path) -> Survey:
    return survey_models(
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


def test_a_base_that_is_not_what_its_config_says_is_named_with_the_tensor(copies: Path) -> None:
    _change(copies / "base", "model.embed_tokens.weight", torch.ones(15, 32))
    with pytest.raises(
        CheckpointError,
        match=r"base: model\.embed_tokens\.weight has shape \[15, 32\] .* but its config\.json",
    ):
        survey(copies)


def test_an_expert_without_a_tensor_is_named_with_it(copies: Path) -> None:
    _change(copies / "ant", "model.norm.weight", None)
    with pytest.raises(CheckpointError, match=r"experts\.ant: .* lacks model\.norm\.weight"):
        survey(copies)


def test_a_quantized_expert_is_refused(copies: Path) -> None:
    _change(copies / "ant", "model.norm.weight", torch.ones(32, dtype=torch.int8))
    with pytest.raises(CheckpointError, match=r"experts\.ant: model\.norm\.weight is I8 in .*/model\.safetensors"):
        survey(copies)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("adapter_config.json", "adapter_model.safetensors is missing"),
        ("adapter_model.bin", "has pickled weights only"),
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
        survey(copies) if opens == "survey" else loading.load_tokenizer(copies / "base")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named_with_its_file(copies: Path, value: float) -> None:
    norm = torch.ones(32)
    norm[7] = value
    _change(copies / "ant", "model.norm.weight", norm)
    with pytest.raises(
        CheckpointError, match=r"experts\.ant: model\.norm\.weight .* not finite in .*ant/model\.safetensors"
    ):
        survey(copies)


def test_an_adapter_cannot_be_the_base(copies: Path) -> None:
    (copies / "base" / "model.safetensors").unlink()
    (copies / "base" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"base: .*base is a LoRA adapter, which can be an expert but"):
        survey(copies)


def test_a_base_without_a_config_is_one_line(copies: Path) -> None:
    (copies / "base" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"^base: .*base has no config\.json; copy it from"):
        survey(copies)


def test_a_folder_without_a_tokenizer_is_one_line(copies: Path) -> None:
    for file in (copies / "base").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"^/.*base has no tokenizer \(tokenizer\.json, .*; copy it from"):
        loading.load_tokenizer(copies / "base")


def _shard(folder: Path) -> Path:
    """Splits a folder's weights in small shards; gives the one with the final norm."""
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    index = json.loads((folder / weight_files.INDEX).read_text())
    return folder / str(index["weight_map"]["model.norm.weight"])


def test_a_tensor_that_is_not_in_its_shard_is_named_with_it(copies: Path) -> None:
    file = _shard(copies / "bee")
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"experts\.bee: .*{file.name} lacks model\.norm\.weight, which"):
        survey(copies)


def test_a_shard_that_is_no_safetensors_is_named(copies: Path) -> None:
    file = _shard(copies / "bee")
    file.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(CheckpointError, match=rf"experts\.bee: .*{file.name} is damaged"):
        survey(copies)


def test_a_file_without_tensors_is_refused(copies: Path) -> None:
    save_file({}, copies / "ant" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"experts\.ant: .*ant holds no tensors"):
        survey(copies)


def _header(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def test_offsets_beyond_the_file_are_named(copies: Path) -> None:
    file = copies / "ant" / "model.safetensors"
    header, data = _header(file)
    last = max((name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
    header[last]["shape"][0] += 1000
    header[last]["data_offsets"][1] += 1000 * 4 * math.prod(header[last]["shape"][1:])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(CheckpointError, match=r"experts\.ant: .*ant/model\.safetensors is damaged"):
        survey(copies)


def test_a_flipped_byte_of_a_header_is_noticed_wherever_it_is(copies: Path) -> None:
    file = copies / "ant" / "model.safetensors"
    whole = file.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    sound = survey(copies).experts["ant"].sha256
    names = [match.span() for match in re.finditer(rb'"format":"pt"', whole[:end])]
    told = set()
    for place in [*range(12), *range(12, end, 97)]:
        if any(start <= place < stop for start, stop in names):
            continue  # which says nothing of the tensors
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = survey(copies).experts["ant"].sha256
        except CheckpointError as error:
            told.add(str(copies / "ant") in str(error))
        else:
            assert found != sound, place
    assert told == {True}


def test_a_head_of_its_own_does_not_fit_a_base_that_ties_it(copies: Path) -> None:
    embedding = load_file(copies / "ant" / "model.safetensors")["model.embed_tokens.weight"]
    _change(copies / "ant", "lm_head.weight", embedding.clone())
    survey(copies)  # a second copy does no harm
    _change(copies / "ant", "lm_head.weight", embedding + 1)
    with pytest.raises(CheckpointError, match=r"experts\.ant: lm_head\.weight in .*/model\.safetensors differs"):
        survey(copies)
    _change(copies / "ant", "lm_head.weight", None)
    _change(copies / "base", "lm_head.weight", embedding + 1)
    with pytest.raises(CheckpointError, match=r"base: .*set tie_word_embeddings: false there"):
        survey(copies)


def test_an_overlay_covers_the_folder_and_damage_to_it_is_noticed(family: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "one.safetensors"
    norm = torch.arange(32, dtype=torch.bfloat16)
    made = {
        "model.norm.weight": LazyTensor(torch.bfloat16, (32,), lambda: norm),
        "empty": LazyTensor(torch.float32, (0, 3), lambda: torch.empty(0, 3)),
        "wide": LazyTensor(torch.float32, (2, 3), lambda: torch.arange(6.0).view(2, 3).T.contiguous().view(2, 3)),
    }
    overlays.write_overlay(path, made, "experts.ant")
    base = Checkpoint(family / "models/base", "base")
    over = base.covered(path, tmp_path, "experts.ant", "f" * 64)
    assert torch.equal(over["model.norm.weight"], norm)
    assert torch.equal(over["wide"], made["wide"].make())
    assert over["empty"].shape == (0, 3)
    assert torch.equal(over["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert (over.sha256, over.where, over.folder) == ("f" * 64, "experts.ant", tmp_path)
    assert overlays.is_overlay(path, whole=True)
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing is left aside"
    data = path.read_bytes()
    path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    assert not overlays.is_overlay(path, whole=True)
    path.write_bytes(data[:-1])
    assert not overlays.is_overlay(path, whole=False)


def test_an_overlay_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    made = {"x": LazyTensor(torch.float16, (1,), lambda: torch.tensor([torch.inf], dtype=torch.float16))}
    with pytest.raises(CheckpointError, match=r"experts\.ant: x is not finite"):
        overlays.write_overlay(tmp_path / "one.safetensors", made, "experts.ant")
    assert not list(tmp_path.iterdir()), "nothing is left aside"
