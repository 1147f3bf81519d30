"""Checkpointed layers: a layer keeps its input alone, and is computed again on the way back.

Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv 1604.06174.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Within this context the model's decoder layers are checkpointed. The forward pass keeps its bits.

    The layers draw no random numbers: the model must be in evaluation mode, or without dropout.
    """
    with ExitStack() as undo:
        for layer in decoder_layers(model):
            own = layer.__dict__.get("forward")
            # Without random numbers there is no generator to put back.
            layer.forward = functools.partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
            )
            undo.callback(_restore, layer, own)
        yield


def _restore(layer: nn.Module, own: Any) -> None:
    """Puts back the `forward` that was set on the layer itself; None where there was none."""
    if own is None:
        del layer.forward
    else:
        layer.forward = own


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers: the module list that holds the most parameters, the outermost of several such; or [].

    As in `models.tensor_names`, no architecture is known by its name.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda one: sum(1 for _ in one.parameters()), default=[]))
