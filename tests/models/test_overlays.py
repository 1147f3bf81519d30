"""Overlays are made once, whole, and again if they are damaged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from evomerge.models import survey
from evomerge.models.family import Inputs
from evomerge.models.source import Source
from evomerge.studies.candidates.setup import Setup, prepare
from tests.helpers.inputs import PROJECTIONS, opened, silent, source


def test_overlays_hold_only_what_was_made_and_are_made_once(family: Path, lora: Path, tmp_path: Path) -> None:
    base = family / "models/base"
    told: list[str] = []
    found = Inputs(source(base), {"lora": source(lora)})
    first = found.open(tmp_path / "cache", told.append)[1]["lora"]
    (file,) = (tmp_path / "cache/inputs").glob("*.safetensors")
    assert file.name == f"{found.sha256('lora')}-folded.safetensors"
    assert set(load_file(file)) == {name for name in first if name.split(".")[-2] in PROJECTIONS}
    assert told == ["making the folded tensors of experts.lora"]
    known = Source(model=str(lora), sha256=found.sha256("lora"))
    again = Inputs(source(base), {"lora": known}).open(tmp_path / "cache", told.append)[1]["lora"]
    assert len(told) == 1
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_a_damaged_overlay_is_made_again(family: Path, lora: Path, tmp_path: Path) -> None:
    base = family / "models/base"
    expected = opened(tmp_path / "cache", base, lora)["lora"]
    (file,) = (tmp_path / "cache/inputs").glob("*.safetensors")
    sound = file.read_bytes()
    for broken in (b"", sound[:100], sound[:-3], sound[:-3] + b"abc"):
        file.unlink()  # the views of a file that is written over in place would change
        file.write_bytes(broken)
        found = Inputs(source(base), {"lora": source(lora)}).open(tmp_path / "cache", whole=True)[1]["lora"]
        assert file.read_bytes() == sound
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_study_looks_for_damage_in_every_byte_before_its_workers_start(
    family: Path, lora: Path, tmp_path: Path
) -> None:
    found = survey.survey_models(source(family / "models/base"), {"lora": source(lora)}, "auto")
    setup = Setup(found.base, found.experts, found.dtype, str(tmp_path / "cache"))
    prepare(setup, [], silent)
    (file,) = (tmp_path / "cache/inputs").glob("*.safetensors")
    sound = file.read_bytes()
    file.unlink()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    prepare(setup, [], silent)
    assert file.read_bytes() == sound


def test_of_workers_that_start_together_one_makes_an_overlay(family: Path, lora: Path, tmp_path: Path) -> None:
    told: list[str] = []
    found = Inputs(source(family / "models/base"), {"lora": source(lora)})
    found.sha256("lora")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: found.open(tmp_path / "cache", told.append), range(4)))
    assert len(told) == 1


def test_a_survey_writes_nothing(family: Path, lora: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    survey.survey_models(source(family / "models/base"), {"lora": source(lora)}, "auto", vocabulary="union")
    assert sorted(tmp_path.rglob("*")) == before
