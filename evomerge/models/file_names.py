"""The names in a model's files that each tensor of the live model is made of.

transformers renames some tensors when it loads them, fuses others (the experts of a mixture) and splits others.
People know the names in the files, so filters speak of these. Only the files' names and the config are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)

from evomerge.models.input import Input


def made_of(model: Input, merged: Iterable[str], tied: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Tensor that is merged -> the names in a folder's files that it is made of, in transformers' order.

    A tensor that transformers does not build, and one of which the folder has nothing, stands for itself.

    Args:
        model: the folder, whose tensors are known to make the live model's, see `conversion.converted_shapes`.
        tied: second name of a tied parameter -> its first name, by which it is merged.
    """
    names: dict[str, list[str]] = {name: [] for name in merged}
    if not model.converts:
        return {name: (name,) for name in names}
    for name, every in targets(model.empty, model.held):
        for target in dict.fromkeys(tied.get(target, target) for target in every):
            if target in names:
                names[target].append(name)
    return {name: tuple(sources) or (name,) for name, sources in names.items()}


def targets(made: Any, names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Each name in the files with the names that it gets in the live model, as transformers' loader decides them.

    Those that the model does not build are among them.

    Args:
        made: the model; weights are not looked at.
    """
    known = made.state_dict()
    transforms: list[WeightTransform] = get_model_conversion_mapping(made)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    prefix = made.base_model_prefix
    # Some renamings begin with a first name that only this order brings before the names that depend on it.
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, pattern = rename_source_key(name, [], [], prefix, known)
        if pattern is None:
            yield name, [target]
            continue
        # Of several targets the loader names the first.
        first, *_ = every = by_pattern[pattern].target_patterns
        yield name, [target.replace(first, one) for one in every]
