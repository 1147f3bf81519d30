"""What one model of a family will have once it is brought under the live model's names, from headers alone."""

from __future__ import annotations

from evomerge.models import adapter_settings, adapters
from evomerge.models.adapters import Adapter
from evomerge.models.configs import refuse_quantized
from evomerge.models.conversion import converted_shapes
from evomerge.models.input import Input
from evomerge.models.loading import Skeleton
from evomerge.models.unbuilt import unbuilt


def describe_input(model: Input, base: Input, live: Skeleton) -> None:
    """Fills in what an input will have.

    Raises:
        CheckpointError: it cannot be brought under the live model's names.
    """
    if model.held.file(next(iter(model.held))).name == adapters.WEIGHTS:
        model.adapter = Adapter(
            model.held,
            adapter_settings.read(model.folder, model.where),
            live.shapes,
            rows=live.rows,
            conv1d=live.conv1d,
            tied=live.tied,
            decoder=live.text[0],
            where=model.where,
            path=model.folder / adapters.WEIGHTS,
        )
        model.shapes, model.dtypes = {**base.shapes, **model.adapter.shapes}, base.dtypes
        return
    refuse_quantized(model)
    lacking = any(name not in model.shapes for name in live.shapes)
    converted = converted_shapes(model, live) if lacking else model.shapes
    model.converts = any(name in converted and name not in model.held for name in live.shapes)
    model.unbuilt = frozenset(_unbuilt(model, live))
    if model.converts:
        model.shapes = {**converted, **{name: model.held.shapes[name] for name in model.unbuilt}}
        model.dtypes = {**dict.fromkeys(model.shapes, model.held.dtype), **model.dtypes}


def _unbuilt(model: Input, live: Skeleton) -> list[str]:
    """The tensors in a folder that its own class does not build, or the live one where the folder has no config."""
    rest = [name for name in model.held if name not in live.names]
    if not rest or not (model.folder / "config.json").is_file():
        return rest
    return unbuilt(model.empty, model.held)
