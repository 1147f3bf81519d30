"""The tensors of a checkpoint that the model's class does not build, and which loading would drop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


def unbuilt(model: Any, names: Iterable[str]) -> list[str]:
    """Those of a checkpoint's tensors that go into no tensor of its model when transformers loads it.

    Args:
        model: the model as its folder's config describes it; weights are not looked at.
        names: the names in the checkpoint's files.
    """
    built = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    prefix = model.base_model_prefix

    def goes_in(name: str) -> bool:
        renamed, _ = rename_source_key(name, renamings, converters, prefix, built)
        return renamed in built or rename_source_key(name, [], [], prefix, built)[0] in built

    return [name for name in names if not goes_in(name)]
