"""LoRA adapters: what one changes in its base, and the weights that result.

    θ = W + s · B A        s = alpha / r, or alpha / √r with use_rslora

(Hu et al. 2021, arXiv:2106.09685, section 4.1; Kalajdzievski 2023, arXiv:2312.03732.) Tensors that an adapter holds
whole (`modules_to_save`, trained biases, resized embeddings) take the place of the base's. The result is that of
peft's merge_and_unload, up to rounding. It is so for tied embeddings too, where the head changes with them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.errors import CheckpointError
from evomerge.models.adapter_settings import CONFIG, Settings
from evomerge.models.low_rank import fold
from evomerge.models.tensor_names import Shapes

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."

_PART = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?P<what>\.weight|\.bias)?")

_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")

# peft's copies of what a wrapped module was before training, and what VeLoRA keeps for its backward passes.
_COPIES = re.compile(r"\.(original_module\.|lora_velora_embed(\.|$))")


@dataclass
class Change:
    """How an adapter makes one tensor.

    Attributes:
        whole: the name of the adapter's tensor that takes the place of the base's.
        a, b, bias: the names of the adapter's tensors A, B, and the bias of B.
        transposed: whether the base keeps this weight as (inputs, outputs).
        scale: the factor s.
    """

    whole: str | None = None
    a: str | None = None
    b: str | None = None
    bias: str | None = None
    transposed: bool = False
    scale: float = 1.0


class Adapter:
    """What an adapter does to a base.

    Args:
        tensors: the adapter's own tensors.
        shapes: the base's parameters.
        rows: the names of parameters with one row a token. An adapter may hold these whole with more or fewer rows.
        conv1d: the names of weights that the base keeps as (inputs, outputs), as GPT-2 does.
        tied: second name of a tied parameter -> its name in `shapes`.
        decoder: the name of the module that has the base's layers. An adapter of a text model fits a base that has
            this text model in another place, and the reverse.
        where: what names the adapter in a person's file, for messages.
        path: the adapter's file, for messages.

    Attributes:
        changes: name of a tensor of the base -> how the adapter makes it.
        shapes: the shapes of these tensors once they are made.

    Raises:
        CheckpointError: naming the first tensor that is not understood or does not fit.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        settings: Settings,
        shapes: Shapes,
        *,
        rows: Collection[str],
        conv1d: Collection[str],
        tied: Mapping[str, str],
        decoder: str,
        where: str,
        path: Path,
    ) -> None:
        self.settings = settings
        self._tensors, self._where, self._path = tensors, where, path
        self._base, self._decoder = shapes, decoder
        self.changes: dict[str, Change] = {}
        whole = self._named()
        for name, key in whole.items():
            twin = whole.get(tied.get(name, ""))
            if twin is not None and torch.equal(tensors[key], tensors[twin]):
                continue  # a second copy of a tied tensor
            alone = [other for other, real in tied.items() if real == name and other not in whole]
            if alone and ".base_layer." not in key:
                raise self._fault(key, f"was trained without {alone[0]}, which is the same tensor in the base")
            self._sort(key, shapes, conv1d)
        self.shapes = {name: self._check(name, change, shapes[name], rows) for name, change in self.changes.items()}

    def _named(self) -> dict[str, str]:
        """The name of a tensor, without peft's wrappers -> the adapter's tensor. Mere copies are left out."""
        named: dict[str, str] = {}
        for key in self._tensors:
            if _COPIES.search(key):
                continue
            name = self._live_name(_WRAPPERS.sub("", key.removeprefix(_PREFIX)))
            first = named.setdefault(name, key)
            if first != key and not torch.equal(self._tensors[first], self._tensors[key]):
                raise self._fault(key, f"and {first} are both for {name} and differ; copy the adapter again")
        return named

    def _live_name(self, name: str) -> str:
        """The base's name of a tensor: the adapter's own, or that in the base's decoder."""
        parts = name.split(".")
        elsewhere = (f"{self._decoder}.{'.'.join(parts[cut:])}" for cut in range(1, len(parts) - 1))
        return next((one for one in (name, *elsewhere) if one in self._base), name)

    def _sort(self, key: str, shapes: Shapes, conv1d: Collection[str]) -> None:
        """Enters one of the adapter's tensors in the change that it belongs to."""
        name = key.removeprefix(_PREFIX)
        if not self._tensors[key].is_floating_point():
            raise self._fault(key, f"is {self._tensors[key].dtype}; give the float16, bfloat16 or float32 adapter")
        part = _PART.fullmatch(name)
        if part is None and "lora_" in name:
            raise self._fault(key, "is no part of LoRA that is understood here; merge it with peft first")
        if part is None:
            target, field = self._live_name(_WRAPPERS.sub("", name)), "whole"
        else:
            module, embedding, what = part["module"], part["kind"], part["what"]
            if bool(embedding) == bool(what) or (what == ".bias" and part["side"] == "A"):
                raise self._fault(key, "is no part of LoRA that is understood here; merge it with peft first")
            target = self._live_name(f"{module}.bias" if what == ".bias" else f"{module}.weight")
            field = "bias" if what == ".bias" else part["side"].lower()
        if target not in shapes:
            raise self._fault(
                key, f"changes {target}, which the base has not as a tensor of its own; give the adapter's own base"
            )
        change = self.changes.setdefault(target, Change())
        if getattr(change, field) is not None:
            raise self._fault(key, f"and {getattr(change, field)} are both for {target}; copy the adapter again")
        setattr(change, field, key)
        if part is not None:
            change.transposed = bool(part["kind"]) or target in conv1d

    def _check(self, name: str, change: Change, shape: tuple[int, ...], rows: Collection[str]) -> tuple[int, ...]:
        """Checks one change and fills in its scale.

        Args:
            shape: that of the base's tensor.

        Returns:
            The shape of the tensor that the change makes.
        """
        if change.whole is not None:
            own = tuple(self._tensors[change.whole].shape)
            if own != shape and not (name in rows and own[1:] == shape[1:]):
                raise self._misfit(change.whole, own, shape)
            shape = own
        module = name.rpartition(".")[0]
        if change.bias is not None:
            change.scale = self._scale_of_bias(change.bias, module, shape)
        if (change.a is None) != (change.b is None):
            raise self._fault(change.a or change.b or "", "lacks its other half; copy the adapter again")
        if change.a is not None and change.b is not None:
            rank = self.settings.rank(module)
            turned = change.transposed and len(shape) == 2
            outputs, inputs = (shape[1], shape[0]) if turned else (shape[0], shape[-1])
            for key, wanted in ((change.a, (rank, inputs)), (change.b, (outputs, rank))):
                if len(shape) != 2 or tuple(self._tensors[key].shape) != wanted:
                    raise self._misfit(key, tuple(self._tensors[key].shape), wanted)
            change.scale = self.settings.scale(module, rank)
        return shape

    def _scale_of_bias(self, key: str, module: str, shape: tuple[int, ...]) -> float:
        """The factor s of the bias of a module's B."""
        own = tuple(self._tensors[key].shape)
        if own != shape:
            raise self._misfit(key, own, shape)
        weight = self.changes.get(f"{module}.weight")
        if weight is None or weight.b is None:
            raise self._fault(key, "has no lora_A and lora_B beside it; copy the adapter again")
        return self.settings.scale(module, self._tensors[weight.b].shape[1])

    def _fault(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {key} in {self._path} {what}")

    def _misfit(self, key: str, own: tuple[int, ...], wanted: tuple[int, ...]) -> CheckpointError:
        return self._fault(
            key, f"has shape {list(own)}, but {list(wanted)} fits the base and {CONFIG}; give its own base"
        )

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A tensor with the adapter folded in, in the base's dtype.

        Args:
            weight: the base's tensor of that name.
        """
        change = self.changes[name]
        if change.whole is not None:
            weight = self._tensors[change.whole].to(weight.dtype)
        if change.bias is not None:
            return (weight.float() + change.scale * self._tensors[change.bias].float()).to(weight.dtype)
        if change.a is None or change.b is None:
            return weight
        a, b = self._tensors[change.a], self._tensors[change.b]
        return fold(weight, a.T, b.T, change.scale) if change.transposed else fold(weight, b, a, change.scale)
