from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from evomerge.errors import StudyError
from evomerge.files import hashed_tensors, hashing


def write_often(path: Path, value: int) -> int:
    """Writes whole tensors of a value, and reads: what is there is always one of the values throughout."""
    seen = 0
    for _ in range(15):
        hashed_tensors.write(path, {"a": torch.full((2000,), float(value))})
        found = hashed_tensors.read(path)
        assert found is not None
        assert float(found[0]["a"].min()) == float(found[0]["a"].max())
        seen += 1
    return seen


def test_tensors_come_back_with_their_hash_and_what_is_told_of_them(tmp_path: Path) -> None:
    arrays = {"a": torch.randn(3, 4).t(), "b": torch.tensor([1, 2], dtype=torch.int32)}
    hashed_tensors.write(tmp_path / "new" / "x.safetensors", arrays, {"record": "{}"})
    found = hashed_tensors.read(tmp_path / "new" / "x.safetensors")
    assert found is not None
    assert all(torch.equal(found[0][name], tensor) for name, tensor in arrays.items())
    assert found[1] == {"record": "{}", hashed_tensors.HASH: hashing.sha256(arrays)}


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    hashed_tensors.write(tmp_path / "x", {}, {"record": "{}"})
    assert hashed_tensors.read(tmp_path / "x") == ({}, {"record": "{}", hashed_tensors.HASH: hashing.sha256({})})


def test_a_missing_a_cut_and_a_changed_file_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert hashed_tensors.read(path) is None
    hashed_tensors.write(path, {"a": torch.ones(10)})
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], whole[:-1] + b"x"):
        path.write_bytes(damaged)
        assert hashed_tensors.read(path) is None


def test_what_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"cannot be written: .*; free some space"):
        hashed_tensors.write(tmp_path / "file" / "x", {"a": torch.ones(1)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StudyError, match="No space left"):
        hashed_tensors.write(tmp_path / "x", {"a": torch.ones(1)})
    assert os.listdir(tmp_path) == ["file"]


def test_writers_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write_often, [path, path], [1, 2])) == [15, 15]
    assert os.listdir(tmp_path) == ["x"]
