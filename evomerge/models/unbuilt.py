"""The tensors of a checkpoint that the model's class does not build, and which loading would drop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from evomerge.models.file_names import targets


def unbuilt(model: Any, names: Iterable[str]) -> list[str]:
    """Those of a checkpoint's tensors that go into no tensor of its model when transformers loads it.

    Args:
        model: the model as its folder's config describes it; weights are not looked at.
        names: the names in the checkpoint's files.
    """
    built = model.state_dict().keys()
    return [name for name, every in targets(model, names) if built.isdisjoint(every)]
