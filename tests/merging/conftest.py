"""The family that gradients are checked on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.family import save_family


@pytest.fixture(scope="session")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family in bfloat16, to be merged in float32: its task vectors are exact, so that thresholds select in
    float64 what they select in float32."""
    return save_family(tmp_path_factory.mktemp("coarse"), torch.bfloat16)
