"""A file of several merges makes one model or several, and its exports say how to make them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.errors import ConfigError, StudyError
from evomerge.files import yaml
from evomerge.results.exporting.several_merges import merge_file
from tests.helpers.inputs import live, silent

HALVES = """name: halves
merge_method: linear
models:
- {model: models/ant, parameters: {weight: 1}}
- {model: models/bee, parameters: {weight: 1}}
"""
LAST = """merge_method: task_arithmetic
base_model: models/base
models: [{model: halves, parameters: {weight: 0.5}}]
parameters: {int8_mask: true}
"""


@pytest.fixture
def write(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Writes a file of several documents; models are relative to the family's folder."""
    monkeypatch.chdir(family)

    def written(*documents: str) -> Path:
        (tmp_path / "merges.yaml").write_text("---\n".join(documents))
        return tmp_path / "merges.yaml"

    return written


def test_the_last_merge_is_the_export_and_names_no_folder_that_is_gone(write, family: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = merge_file(write(HALVES, LAST), tmp_path / "out", silent)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "merges.yaml"}
    merged, (base, ant, bee) = live(out), (live(family / "models" / name) for name in ("base", "ant", "bee"))
    for name in merged:
        halves = (ant[name] + bee[name]) / 2
        torch.testing.assert_close(merged[name], base[name] + 0.5 * (halves - base[name]))
    assert not (out / "recipe.yaml").exists()
    kept = yaml.read_documents(out / "mergekit.yaml")
    assert [document.get("name") for document in kept] == ["halves", None]
    assert kept[0]["models"][0]["model"] == str(family / "models/ant")
    assert kept[1]["models"][0]["model"] == "halves"
    card = (out / "README.md").read_text()
    assert "the results before it were not kept" in card
    assert str(family) not in card
    assert str(tmp_path) not in card
    assert ModelCard.load(out / "README.md").data.base_model is None
    about = json.loads((out / "evomerge.json").read_text())
    assert set(about["merges"]) == {"halves"}
    again = merge_file(out / "mergekit.yaml", tmp_path / "again", silent)
    assert json.loads((again / "evomerge.json").read_text()) == about


def test_several_results_lie_in_folders_of_their_names(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    alone = HALVES.replace("halves", "org/alone").replace("models/bee", "models/base")
    (tmp_path / "out").mkdir()
    out = merge_file(write(HALVES, f"name: last\n{LAST}", alone), tmp_path / "out", silent)
    assert {path.name for path in out.iterdir()} == {"last", "org-alone"}
    assert (out / "org-alone/recipe.yaml").exists()  # it is made of no other result
    assert len(yaml.read_documents(out / "last/mergekit.yaml")) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"out", "merges.yaml"}


def test_a_merge_that_fails_leaves_nothing_behind(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    wrong = LAST.replace("weight: 0.5", "weight: [{filter: self_atn, value: 1}, {value: 0}]")
    with pytest.raises(ConfigError, match=r"merges.yaml, document 2: models\[0\].*'self_atn' matches no tensor"):
        merge_file(write(HALVES, wrong), tmp_path / "out", silent)
    assert {path.name for path in tmp_path.iterdir()} == {"merges.yaml"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_text("")
    with pytest.raises(StudyError, match="out"):
        merge_file(write(HALVES, LAST), tmp_path / "out", silent)


def test_notes_are_printed_on_standard_error(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = CliRunner().invoke(app, ["merge", str(write(HALVES, LAST)), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert line.endswith(
        "merges.yaml, document 2: parameters.int8_mask: changes how mergekit stores a mask, and no result"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{base_model: a, gate_mode: hidden, experts: []}", "is a configuration of mergekit-moe"),
        ("{genome: {models: []}, tasks: []}", "is a configuration of mergekit-evolve"),
    ],
)
def test_configurations_of_other_tools_are_refused_as_what_they_are(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        merge_file(tmp_path / "file.yaml", tmp_path / "out", silent)
    assert len(caught.value.faults) == 1
