"""The command `demo` from end to end, on a family that is hardly trained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.demo import experiment, family
from evomerge.demo.family import Course, Settings
from evomerge.models.live_weights import weights_sha256
from evomerge.scoring.documents.skills import SKILLS
from evomerge.studies import journal

SMALL = Settings(
    hidden=32,
    heads=2,
    mlp=64,
    batch=8,
    warmup=2,
    base=Course(6, 2e-3, dict.fromkeys(SKILLS, 1.0)),
    experts={skill: Course(4, 2e-3, {skill: 1.0}) for skill in SKILLS},
)


def write_inline(folder: Path, candidates: int) -> Path:
    """The demo's own experiment, but without Ray: what Ray's workers give, tests/studies/workers compares."""
    path = experiment.write_experiment(folder, candidates)
    path.write_text(re.sub("^workers: .*$", "workers: {backend: inline}", path.read_text(), flags=re.MULTILINE))
    return path


@pytest.fixture
def call_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs `evomerge demo` in a folder of its own with so many candidates, and returns what it said."""
    monkeypatch.setattr("evomerge.demo.tour.train_family", partial(family.train_family, settings=SMALL))
    monkeypatch.setattr("evomerge.demo.tour.write_experiment", write_inline)

    def call(candidates: int, *options: str) -> Any:
        arguments = ["demo", "--dir", str(tmp_path / "demo"), "--candidates", str(candidates), *options]
        return CliRunner().invoke(app, arguments)

    return call


@pytest.mark.slow
def test_the_demo_trains_searches_certifies_and_exports_and_may_be_interrupted(
    call_demo: Callable[..., Any], tmp_path: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evomerge.demo.tour.certify_winner", interrupt)
        stopped = call_demo(14)
    assert stopped.exit_code == 130, stopped.output
    assert "training reverse" in stopped.stderr

    went_on = call_demo(30, "--json")
    assert went_on.exit_code == 0, went_on.output
    assert "reverse: already trained" in went_on.stderr
    assert "on held-out documents" in went_on.stderr
    made = json.loads(went_on.stdout)
    assert Path(made["experiment"]).parent == tmp_path / "demo"
    trials = journal.read_trials(Path(made["study"]))
    assert len(trials) > 20, "it went on from what the first call left"
    assert trials[made["best"]["number"]].weights_sha256 == made["best"]["weights_sha256"]
    names = [model["name"] for model in made["holdout"]["models"]]
    assert names == ["base", *(f"expert {skill}" for skill in SKILLS), "uniform average", "winner"]
    assert made["holdout"]["documents"] == 3000
    assert "hold-out documents" in made["holdout"]["verdict"]
    exported = AutoModelForCausalLM.from_pretrained(made["export"])
    assert weights_sha256(exported) == made["best"]["weights_sha256"]
