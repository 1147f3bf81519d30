"""What `evomerge.models.checkpoints` asks of huggingface_hub."""

from __future__ import annotations

import inspect

import pytest
from huggingface_hub import snapshot_download


@pytest.mark.parametrize("name", ["repo_id", "revision", "allow_patterns"])
def test_snapshot_download_takes_its_argument(name: str) -> None:
    names = inspect.signature(snapshot_download).parameters
    assert name in names, f"snapshot_download lost {name}: mend models/checkpoints.py"
