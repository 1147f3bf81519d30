"""Adapters or whole weights are opened for training, kept, and put into a model again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.files import hashing
from evomerge.operators.training import weights
from evomerge.operators.training.settings import Weights
from evomerge.operators.training.weights import Trainable
from tests.helpers.training import make_model


def trainable(method: Weights) -> Trainable:
    return Trainable(method, rank=2, seed=0, length=16, checkpointing=False)


def bits(model: Any) -> str:
    return hashing.sha256(dict(model.named_parameters()))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_kept_of_a_training_makes_the_same_weights_in_a_fresh_model(method: Weights) -> None:
    model, fresh = make_model(), make_model()
    with weights.opened(model, trainable(method)) as parameters, torch.no_grad():
        for parameter in parameters.values():
            assert parameter.requires_grad
            parameter.add_(0.1)
        arrays = {name: tensor.clone() for name, tensor in weights.kept(parameters, method).items()}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (bits(model) == bits(fresh)) == (method == "lora"), "adapters leave the model's own weights alone"
    weights.put(model, arrays, method)
    weights.put(fresh, arrays, method)
    assert bits(model) == bits(fresh) != bits(make_model())


def test_whole_weights_of_another_model_are_refused() -> None:
    with pytest.raises(CandidateError, match=r"is of another model: lm_head\.weight does not fit"):
        weights.put(make_model(), {"lm_head.weight": torch.zeros(3, 16)}, "full")
    with pytest.raises(CandidateError, match="nobody does not fit"):
        weights.put(make_model(), {"nobody": torch.zeros(3)}, "full")
