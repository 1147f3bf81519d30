from __future__ import annotations

from pathlib import Path

import yaml

from evomerge.demo.experiment import write_experiment
from evomerge.files import shipped
from evomerge.files.yaml import read_yaml
from evomerge.scoring.documents.skills import SKILLS


def test_the_experiment_names_the_familys_folders(tmp_path: Path) -> None:
    experiment = read_yaml(write_experiment(tmp_path, 120, seed=7))
    assert experiment["base"] == "models/base"
    assert experiment["experts"] == {skill: f"models/expert-{skill}" for skill in SKILLS}
    assert experiment["budget"] == {"candidates": 120}
    assert experiment["seed"] == 7
    assert experiment["fitness"] in shipped.names("fitness")


def test_the_comments_count_the_genes(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, 120, experts=("reverse", "double"))
    assert "= 12 genes" in path.read_text()
    assert set(read_yaml(path)["experts"]) == {"reverse", "double"}


def test_an_experiment_is_replaced_whole(tmp_path: Path) -> None:
    write_experiment(tmp_path, 10)
    path = write_experiment(tmp_path, 20)
    assert yaml.safe_load(path.read_text())["budget"] == {"candidates": 20}
    assert [entry.name for entry in tmp_path.iterdir()] == ["experiment.yaml"]
