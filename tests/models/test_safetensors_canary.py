"""The parts of safetensors that `evomerge` uses: one test each, which names what went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2, 3, dtype=torch.bfloat16)}, tmp_path / "x", metadata={"key": "value"})
    return tmp_path / "x"


def test_a_slice_tells_shape_and_dtype_from_the_header(file: Path) -> None:
    with safe_open(file, framework="pt", device="cpu") as opened:
        part = opened.get_slice("a")
        assert list(part.get_shape()) == [2, 3], "get_slice().get_shape() changed: mend models/checkpoints.py"
        assert part.get_dtype() == "BF16", "get_slice().get_dtype() changed: mend models/checkpoints.py"


def test_metadata_come_back(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"key": "value"}, "metadata() changed: mend files/hashed_tensors.py"


def test_tensors_are_views_of_the_file(file: Path) -> None:
    with safe_open(file, framework="pt", device="cpu") as opened:
        tensor = opened.get_tensor("a")
    assert tensor.equal(torch.ones(2, 3, dtype=torch.bfloat16)), "get_tensor() changed: mend models/checkpoints.py"


def test_a_damaged_file_is_a_safetensor_error(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SafetensorError), safe_open(file, framework="pt"):
        pass


def test_a_file_is_the_length_of_its_header_the_header_and_the_bytes(file: Path) -> None:
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    wanted = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
    assert header == {"__metadata__": {"key": "value"}, "a": wanted}, "the format changed: mend models/overlays.py"
    assert len(content) == 8 + size + 12
