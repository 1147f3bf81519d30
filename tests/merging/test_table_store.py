from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import CheckpointError, StudyError
from evomerge.merging import table_store
from evomerge.merging.kernels.tables import KINDS
from evomerge.merging.table_store import Statistics
from evomerge.models.checkpoints import Checkpoint

NAME = "model.layers.1.mlp.up_proj.weight"


def open_family(folder: Path, cache: Path, messages: list[str]) -> Statistics:
    base = Checkpoint(folder / "models/base", "base")
    experts = {name: Checkpoint(folder / "models" / name, f"experts.{name}") for name in ("ant", "bee")}
    return Statistics(base, experts, list(base), cache, messages.append)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_computed_once_and_read_back_bit_for_bit(family: Path, tmp_path: Path, kind: str) -> None:
    messages: list[str] = []
    experts = ["ant", "bee"] if "gram" in kind or kind == "variance" else ["bee"]
    first, second = (open_family(family, tmp_path, messages).table(kind, experts, NAME) for _ in range(2))
    assert messages == [f"computing the {kind.replace('_', ' ')} table of {', '.join(experts)}"]
    assert vars(first).keys() == vars(second).keys()
    assert all(np.array_equal(value, vars(second)[key]) for key, value in vars(first).items())


def test_each_table_is_of_its_own_experts_and_tensor(family: Path, tmp_path: Path) -> None:
    opened = open_family(family, tmp_path, [])
    totals = [opened.table("magnitude", [expert], NAME).total[0] for expert in ("ant", "bee")]
    totals.append(opened.table("magnitude", ["ant"], "model.norm.weight").total[0])
    assert len(set(totals)) == 3
    gram, turned = (opened.table("gram", experts, NAME).dots for experts in (["ant", "bee"], ["bee", "ant"]))
    assert gram[1, 1] == turned[2, 2] != gram[2, 2]


@pytest.mark.parametrize("damage", ["empty", "nonsense", "one bit", "other tensors"])
def test_damaged_tables_are_computed_again(family: Path, tmp_path: Path, damage: str) -> None:
    messages: list[str] = []
    whole = open_family(family, tmp_path, messages).table("magnitude", ["ant"], NAME)
    (file,) = tmp_path.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    replaced = {"empty": b"", "nonsense": b"nonsense", "one bit": bytes(data)}
    file.unlink()  # the old one is mapped
    if damage == "other tensors":
        save_file({"x": torch.zeros(2)}, file)
    else:
        file.write_bytes(replaced[damage])
    again = open_family(family, tmp_path, messages).table("magnitude", ["ant"], NAME)
    assert len(messages) == 2
    assert np.array_equal(whole.values, again.values)
    assert f"{NAME}|values" in load_file(file)


def test_values_that_are_not_finite_are_an_error_that_names_file_and_tensor(family: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    state = load_file(family / "models/ant/model.safetensors")
    state[NAME][3, 4] = float("nan")
    save_file(state, folder / "model.safetensors")
    base, expert = Checkpoint(family / "models/base", "base"), Checkpoint(folder, "experts.broken")
    opened = Statistics(base, {"broken": expert}, list(base), tmp_path / "tables")
    with pytest.raises(CheckpointError, match=f"experts.broken: {NAME} has values that are not finite in .*broken"):
        opened.table("magnitude", ["broken"], NAME)
    turned = Statistics(expert, {"base": base}, list(base), tmp_path / "tables")
    with pytest.raises(CheckpointError, match=f"experts.broken: {NAME}"):
        turned.table("gram", ["base"], NAME)


def test_a_cache_that_cannot_be_written_is_one_clear_error(family: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written"):
        open_family(family, tmp_path / "file" / "tables", []).table("gram", ["ant"], NAME)


def test_the_version_is_part_of_the_name(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    open_family(family, tmp_path, messages).table("gram", ["ant"], NAME)
    monkeypatch.setattr(table_store, "_VERSION", "next")
    open_family(family, tmp_path, messages).table("gram", ["ant"], NAME)
    assert len(messages) == 2
