"""Checks that checkpoints fit together: that they have the same tensors, of sound shapes, dtypes and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from evomerge.errors import CheckpointError
from evomerge.models.checkpoints import CODES, Checkpoint
from evomerge.models.tensor_names import Shapes, some


class Described(Protocol):
    """What the headers of a checkpoint say, or will say once its overlay is made."""

    where: str
    folder: Path

    @property
    def shapes(self) -> Shapes:
        """Each tensor's shape."""

    @property
    def dtypes(self) -> Mapping[str, str]:
        """Each tensor's dtype, see `Checkpoint.dtypes`."""

    def file(self, name: str) -> Path:
        """The file or folder that a tensor comes from."""


def check_fit(
    base: Described, experts: Mapping[str, Described], wanted: Shapes, rows: Collection[str] = ()
) -> None:
    """Checks that every checkpoint has the tensors of the live model, in the live model's shapes.

    Args:
        wanted: the live model's parameters, name -> shape.
        rows: the names of the parameters that have one row for each token of the vocabulary.

    Raises:
        CheckpointError: naming all checkpoints that do not fit, and their tensors.
    """
    faults = []
    for checkpoint in (base, *experts.values()):
        where, folder = checkpoint.where, checkpoint.folder
        if missing := [name for name in wanted if name not in checkpoint.shapes]:
            faults.append(
                f"{where}: {folder} lacks {some(missing)}; all models must be fine-tuned "
                "from one base and saved under the same tensor names"
            )
        for name, shape in wanted.items():
            if name in checkpoint.shapes and (
                fault := _fault(checkpoint, name, tuple(shape), rows, of_base=checkpoint is base)
            ):
                faults.append(f"{where}: {name} {fault}")
                break
    if faults:
        raise CheckpointError("\n".join(faults))


def _fault(
    checkpoint: Described, name: str, shape: tuple[int, ...], rows: Collection[str], *, of_base: bool
) -> str | None:
    """Why a checkpoint's tensor cannot be a live model's parameter of a shape; None if it can."""
    own, file = checkpoint.shapes[name], checkpoint.file(name)
    if checkpoint.dtypes[name] not in CODES.values():
        return (
            f"is {checkpoint.dtypes[name]} in {file}: a quantized checkpoint; give the float16, bfloat16 or "
            "float32 one"
        )
    if own != shape and of_base:
        return f"has shape {list(own)} in {file}, but its config.json asks for {list(shape)}; copy both again"
    if name in rows and own != shape and own[1:] == shape[1:]:
        return (
            f"has {own[0]} rows in {file}, but the base's has {shape[0]}: their vocabularies differ; give "
            "`vocabulary: base` or `vocabulary: union`, which match rows by token"
        )
    if own != shape:
        return f"has shape {list(own)} in {file}, but the base's is {list(shape)}; merge models of one architecture"
    return None


def check_finite(checkpoint: Checkpoint, names: Collection[str]) -> None:
    """Checks that none of these tensors has a NaN or an infinity. Reads each of their bytes once.

    Raises:
        CheckpointError: naming the first tensor that has one, and its file.
    """
    for name in names:
        if not is_finite(checkpoint[name]):
            raise CheckpointError(
                f"{checkpoint.where}: {name} has values that are not finite in {checkpoint.file(name)}; copy it "
                "again, or give another checkpoint"
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)  # one pass without a copy; a NaN shows in both
    return math.isfinite(low.item()) and math.isfinite(high.item())


def collect(do: Callable[[str], None], names: Iterable[str]) -> None:
    """Calls a function for each name, and raises the faults of all calls at once."""
    faults = []
    for name in names:
        try:
            do(name)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError("\n".join(faults))
