"""A random tiny family of models with local tasks: real checkpoints, real lm-eval, nothing trained."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.helpers.family import experiment_mapping, save_family
from tests.helpers.postgresql import serve


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests that need Ray first, so that one of several processes runs them all and starts it once."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/base, models/ant, models/bee (float32, 4 layers) and tasks/."""
    return save_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def bf16_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bfloat16."""
    return save_family(tmp_path_factory.mktemp("bf16_family"), torch.bfloat16)


@pytest.fixture
def write_experiment(family: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes an experiment file on the family: `write_experiment(sampler=..., study=...)` gives its path."""

    def write(name: str = "experiment.yaml", **changes: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(experiment_mapping(family, tmp_path / "study", **changes)))
        return path

    return write


@pytest.fixture
def load_model() -> Callable[[Path], Any]:
    """Opens a model folder in float32."""
    return lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A private PostgreSQL server on a Unix socket; gives a `storage` with the password in the environment."""
    yield from serve()
