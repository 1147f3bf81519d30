"""What a pass needs of a merge method. No torch here."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Kernel(Hashable, Protocol):
    """The elementwise part of a merge method; `merging.methods.Method` is the whole contract."""

    __name__: str

    @property
    def OPTIONS(self) -> Mapping[str, bool]:  # noqa: N802
        """The switches that hold for the whole model, with their defaults."""

    @property
    def NEEDS_ELEMENT_NUMBERS(self) -> bool:  # noqa: N802
        """Whether `merge` reads s["element"]."""

    def merge(
        self, base: Tensor, experts: Sequence[Tensor], s: Mapping[str, Tensor], options: Mapping[str, bool], /
    ) -> Tensor:
        """The merged elements, float32, in the shape of `base`; the contract says what the arguments are."""
