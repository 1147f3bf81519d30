"""Settings of a config for which each layer may have a value of its own."""

from __future__ import annotations

from typing import Any


def by_layer(config: Any, name: str, default: Any = None) -> list[Any]:
    """The values of a setting in a text model's layers.

    Args:
        config: a text model's config.
        default: the value of a setting that the config does not have.
    """
    count = getattr(config, "num_hidden_layers", None) or 1
    try:
        return [getattr(config, name, default)] * count
    except RuntimeError:  # transformers' refusal to read one value where layers differ
        return [getattr(config.per_layer_config[number], name, default) for number in range(count)]


def setting(config: Any, name: str, default: Any = None) -> Any:
    """The value of a setting; a list of one value for each layer where layers differ."""
    first, *others = values = by_layer(config, name, default)
    return first if all(other == first for other in others) else values
