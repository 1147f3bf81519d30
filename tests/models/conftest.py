"""Folders of an adapter, of mixtures of experts, and of models whose vocabularies differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.inputs import ADAPTER_KINDS, FIRST, save_adapter, save_mixtures, save_model


@pytest.fixture
def lora(family: Path, tmp_path: Path) -> Path:
    """An adapter on the family's base."""
    save_adapter(family / "models/base", tmp_path / "lora", **ADAPTER_KINDS["plain"])
    return tmp_path / "lora"


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders base and ant of a tiny Mixtral."""
    return save_mixtures(tmp_path_factory.mktemp("mixtures"))


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def strangers(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """base: a to d and two rows of padding. ant: order changed, no b, but x and y. bee: y, z, <new>; no a."""
    folder = tmp_path / "strangers"
    save_model(folder / "base", [*FIRST, *"abcd"], 10, tied=request.param, seed=1)
    save_model(folder / "ant", [*FIRST, *"dyxca"], 9, tied=request.param, seed=2)
    save_model(folder / "bee", [*FIRST, *"bcdyz"], 12, tied=request.param, seed=3, special="<new>")
    return folder
