"""`evomerge extend` and `evomerge distill`: operators on one model."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from evomerge.cli.main import app
from evomerge.models.live_weights import weights_sha256
from tests.helpers.family import LETTERS, make_tokenizer


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "300"})


def fails(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    generator = random.Random(1)
    path = tmp_path / "bee.jsonl"
    rows = ({"text": "".join(generator.choices(LETTERS, k=20))} for _ in range(24))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reading(tmp_path: Path) -> Path:
    """A text long enough to measure on."""
    path = tmp_path / "text.txt"
    path.write_text("".join(random.Random(2).choices(LETTERS, k=2000)))
    return path


def test_a_model_is_extended_and_measured(family: Path, tmp_path: Path, reading: Path) -> None:
    out = tmp_path / "long"
    result = call("extend", family / "models/ant", out, "--factor", 4, "--text", reading, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["old_length"], found["new_length"]) == (64, 256)
    for name in ("before", "after"):
        assert all(0.0 < found[name][part] < 20.0 for part in ("inside", "beyond"))
    assert found["before"] != found["after"]
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == 256
    assert config["rope_scaling"]["factor"] == 4.0
    plain = AutoModelForCausalLM.from_pretrained(family / "models/ant")
    assert weights_sha256(AutoModelForCausalLM.from_pretrained(out)) == weights_sha256(plain)
    assert (out / "recipe.yaml").is_file()


def test_a_factor_of_one_changes_nothing(family: Path, tmp_path: Path, reading: Path) -> None:
    out = tmp_path / "same"
    assert call("extend", family / "models/ant", out, "--factor", 1, "--text", reading).exit_code == 0
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (family / "models/ant", out)]
    logits = [model(input_ids=torch.arange(1, 12)[None]).logits for model in models]
    assert torch.equal(*logits)


def test_other_options_of_an_operator_are_set_by_name(family: Path, tmp_path: Path, reading: Path) -> None:
    arguments = ["--target-length", 128, "--set", "beta_fast=8", "--set", "truncate=false", "--text", reading]
    result = call("extend", family / "models/ant", tmp_path / "long", *arguments, "--json")
    options = json.loads(result.stdout)["options"]
    assert (options["beta_fast"], options["truncate"], options["target_length"]) == (8.0, False, 128.0)


def test_a_model_learns_from_another(family: Path, tmp_path: Path, texts: Path) -> None:
    out = tmp_path / "taught"
    models = family / "models"
    arguments = ["--teacher", f"bee={models / 'bee'}", "--data", f"bee={texts}", "--steps", 12]
    options = ["--set", "length=32", "--set", "lr=0.02", "--set", "loss.temperature=2"]
    result = call("distill", models / "ant", out, *arguments, *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["after"] < found["before"]
    assert (found["steps"], len(found["loss"])) == (12, 12)
    assert found["options"]["loss"]["temperature"] == 2.0
    before = AutoModelForCausalLM.from_pretrained(models / "ant")
    taught = AutoModelForCausalLM.from_pretrained(out)
    assert weights_sha256(taught) != weights_sha256(before)
    again = call("merge", out / "recipe.yaml", tmp_path / "again")
    assert again.exit_code == 0, again.output
    rebuilt = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert weights_sha256(rebuilt) == weights_sha256(taught)


def test_its_curve_is_shown(family: Path, tmp_path: Path, texts: Path) -> None:
    models = family / "models"
    arguments = ["--teacher", f"bee={models / 'bee'}", "--data", f"bee={texts}", "--steps", 3, "--set", "length=32"]
    result = call("distill", models / "ant", tmp_path / "taught", *arguments)
    assert result.exit_code == 0, result.output
    assert "loss before" in result.stdout
    assert any(block in result.stdout for block in "▁▂▃▄▅▆▇█")


def test_no_steps_change_no_bit(family: Path, tmp_path: Path, texts: Path) -> None:
    models, out = family / "models", tmp_path / "same"
    arguments = ["--teacher", f"bee={models / 'bee'}", "--data", f"bee={texts}", "--steps", 0, "--set", "length=32"]
    assert call("distill", models / "ant", out, *arguments).exit_code == 0
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (models / "ant", out))
    assert weights_sha256(before) == weights_sha256(after)


def test_a_text_with_a_token_that_the_model_has_no_row_for_is_told_before_anything_is_built(
    family: Path, tmp_path: Path, texts: Path
) -> None:
    ant, out = shutil.copytree(family / "models/ant", tmp_path / "ant"), tmp_path / "out"
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<call>"])
    tokenizer.save_pretrained(ant)
    short = ("--set", "length=32", "--steps", 0)
    teacher = ["--teacher", f"bee={family / 'models/bee'}"]
    assert call("distill", ant, tmp_path / "sound", *teacher, "--data", f"bee={texts}", *short).exit_code == 0
    (tmp_path / "met.jsonl").write_text('{"text": "abc<call>"}\n')
    said = fails("distill", ant, out, *teacher, "--data", f"bee={tmp_path / 'met.jsonl'}", *short)
    assert "met.jsonl: holds the token '<call>' (id 14), but the model has 14 tokens" in said
    (tmp_path / "met.txt").write_text("abc<call>" * 100)
    said = fails("extend", ant, out, "--factor", 2, "--text", tmp_path / "met.txt")
    assert "--text: holds the token '<call>' (id 14), but the model has 14 tokens" in said
    assert "merging" not in said
    assert not out.exists()


def test_bad_input_is_told_in_a_line(family: Path, tmp_path: Path, texts: Path) -> None:
    ant, bee, out = family / "models/ant", family / "models/bee", tmp_path / "out"
    assert "target_length" in fails("extend", ant, out)
    assert "keeps state between forwards" in fails("extend", ant, out, "--method", "dynamic", "--factor", 2)
    assert "beta: is no key here" in fails("extend", ant, out, "--factor", 2, "--set", "beta=1")
    assert "give NAME=VALUE" in fails("extend", ant, out, "--factor", 2, "--set", "beta_fast")
    assert "--text" in fails("extend", ant, out, "--factor", 2, "--text", tmp_path / "lost.txt")
    teacher = ["--teacher", f"bee={bee}"]
    assert "no --teacher has this name" in fails("distill", ant, out, *teacher, "--data", f"ant={texts}")
    assert "there is no file" in fails("distill", ant, out, *teacher, "--data", f"bee={tmp_path / 'lost.jsonl'}")
    data = ["--data", f"bee={texts}"]
    assert "64 tokens" in fails("distill", ant, out, *teacher, *data, "--set", "length=65")
    assert "bee: is there twice" in fails("distill", ant, out, *teacher, *teacher, *data)
    assert "means the model itself" in fails("distill", ant, out, "--teacher", f"student={bee}", *data, *teacher)
    assert "means the model itself" in fails(
        "distill", ant, out, "--teacher", f"base={bee}", "--data", f"base={texts}"
    )
    assert "loss is set to a value" in fails(
        "distill", ant, out, *teacher, *data, "--set", "loss=3", "--set", "loss.kind=jsd"
    )
    assert "factor: is an option of this command" in fails("extend", ant, out, "--factor", 2, "--set", "factor=3")
    deep, short = tmp_path / "deep.jsonl", ("--set", "length=32")
    deep.write_text("[" * 200_000)
    assert "line 1: is not JSON" in fails("distill", ant, out, *teacher, "--data", f"bee={deep}", *short)
    half = tmp_path / "half.jsonl"
    half.write_text('{"text": "ab\\ud800cd"}\n')
    assert "half of a surrogate pair" in fails("distill", ant, out, *teacher, "--data", f"bee={half}", *short)
    assert not out.exists()
    out.mkdir()
    (out / "file").touch()
    assert "exists already" in fails("extend", ant, out, "--factor", 2)
