"""The weights of a live model: all that its checkpoint's files hold, whether its class builds it or not.

- parameters, tied ones once;
- saved buffers: what a model keeps without training it by gradients (a router's balancing bias, a scale);
- carried tensors: what the files hold and the model's class leaves out (heads that predict several tokens, towers).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from evomerge.files import hashing
from evomerge.models.checkpoints import Checkpoint


@dataclass(frozen=True)
class LiveWeights:
    """Where the weights of a live model lie, by name.

    Attributes:
        merged: what a merge overwrites in place; the model's own parameters are `nn.Parameter`s.
        kept: what stays as the base has it: whole numbers, and what no expert has.
        carried: the names of those among both that the model does not build.
    """

    merged: dict[str, torch.Tensor]
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    carried: frozenset[str] = frozenset()

    def sha256(self) -> str:
        """The hash of all of them."""
        return hashing.sha256({**self.kept, **self.merged})

    def carried_tensors(self) -> dict[str, torch.Tensor]:
        """The carried tensors by name."""
        return {name: tensor for name, tensor in {**self.kept, **self.merged}.items() if name in self.carried}


def live_weights(
    model: nn.Module,
    base: Checkpoint | None = None,
    merged: Collection[str] | None = None,
    carried: Collection[str] = (),
    dtype: torch.dtype | None = None,
) -> LiveWeights:
    """The weights of a live model.

    Args:
        model: the live model, which has the base's weights.
        base: the base's checkpoint.
        merged: the names of what merges overwrite; None for all parameters.
        carried: the names of the carried tensors, all of which `base` has.
        dtype: that of carried tensors which `base` has in the dtype of most of its weights.
    """
    parameters = dict(model.named_parameters())
    merged = set(parameters if merged is None else merged)
    device = next(iter(parameters.values())).device
    outside: dict[str, torch.Tensor] = {}
    for name in carried:
        assert base is not None
        cast = dtype if name in merged and base.dtypes[name] == base.dtype else None
        outside[name] = base[name].to(device=device, dtype=cast, copy=True)
    every = {**parameters, **saved_buffers(model), **outside}
    return LiveWeights(
        merged={name: every[name] for name in every if name in merged},
        kept={name: every[name] for name in every if name not in merged},
        carried=frozenset(carried),
    )


def saved_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that a model saves, by name."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in parameters and isinstance(tensor, torch.Tensor)
    }


def weights_sha256(model: nn.Module, carried: Mapping[str, torch.Tensor] | None = None) -> str:
    """The hash of a live model's weights: parameters, tied ones once, and saved buffers.

    Args:
        carried: tensors of its files that the model does not build, by name; they count as well.
    """
    return hashing.sha256({**dict(model.named_parameters()), **saved_buffers(model), **(carried or {})})
