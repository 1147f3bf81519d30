from __future__ import annotations

from pathlib import Path

import torch

from evomerge.merging import model_stock
from evomerge.merging.table_store import Statistics
from evomerge.models.checkpoints import Checkpoint
from tests.helpers.merging import merge

NAMES = ["model.layers.0.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight"]


def test_weights_of_task_vectors_make_what_the_method_makes(family: Path, tmp_path: Path) -> None:
    base = Checkpoint(family / "models/base", "base")
    experts = {name: Checkpoint(family / "models" / name, name) for name in ("ant", "bee")}
    weights = dict(
        model_stock.task_vector_weights(NAMES, ("ant", "bee"), Statistics(base, experts, NAMES, tmp_path))
    )
    assert list(weights) == NAMES
    for name, weight in weights.items():
        assert 0.0 < weight <= 0.5
        tensors = base[name], {expert: checkpoint[name] for expert, checkpoint in experts.items()}
        torch.testing.assert_close(
            merge("task_arithmetic", *tensors, weight=weight), merge("model_stock", *tensors), rtol=1e-5, atol=1e-6
        )


def test_tensors_that_no_expert_changes_have_no_weight(family: Path, tmp_path: Path) -> None:
    base = Checkpoint(family / "models/base", "base")
    statistics = Statistics(base, {"same": base, "again": base}, NAMES, tmp_path)
    assert list(model_stock.task_vector_weights(NAMES, ("same", "again"), statistics)) == []
