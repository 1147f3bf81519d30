"""Checkpointed layers: the same numbers in less memory, in every family of models."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from evomerge.models.checkpointing import checkpointed, decoder_layers
from tests.helpers.tiny_models import CONFIGS, make_tiny_model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """The gradients of a model's parameters by name, which are cleared."""
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mamba", "qwen3_next"])
def test_checkpointed_layers_give_the_same_bits(family: str) -> None:
    model = make_tiny_model(family)
    ids = torch.arange(12)[None]
    found = []
    for wrap in (False, True):
        with checkpointed(model) if wrap else nullcontext():
            logits = model(input_ids=ids, use_cache=False).logits
            logits.square().mean().backward()
        found.append((logits.detach(), gradients(model)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, one in found[0][1].items():
        torch.testing.assert_close(one, found[1][1][name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_layers_are_found_in_every_family(family: str) -> None:
    model = make_tiny_model(family)
    text = model.config.get_text_config()
    wanted = getattr(text, "num_hidden_layers", None) or text.n_layers
    assert len(decoder_layers(model)) == wanted


def test_layers_keep_their_inputs_alone() -> None:
    """Bytes that wait for the way back, counted as autograd saves them."""
    model = make_tiny_model("llama")
    ids = torch.arange(100)[None]

    def saved(context: AbstractContextManager[None]) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with context, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.base_model(input_ids=ids, use_cache=False)[0]
        del hidden
        return sum(sizes.values())

    assert saved(checkpointed(model)) < 0.3 * saved(nullcontext())


def test_a_layers_own_forward_is_put_back() -> None:
    model = make_tiny_model("llama")
    before = [sorted(vars(module)) for module in model.modules()]
    with checkpointed(model):
        assert all("forward" in vars(layer) for layer in model.model.layers)
    assert [sorted(vars(module)) for module in model.modules()] == before


def test_a_model_without_a_module_list_has_no_layers() -> None:
    assert decoder_layers(torch.nn.Linear(2, 2)) == []
