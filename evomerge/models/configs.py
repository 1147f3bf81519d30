"""A model's config.json, and configs that call weights quantized."""

from __future__ import annotations

from typing import Any

from evomerge.errors import CheckpointError
from evomerge.models.checkpoints import CODES
from evomerge.models.input import Input
from evomerge.models.loading import read_config

CONFIG = "config.json"


def config_of(model: Input) -> Any | None:
    """The transformers config of a model; None where its folder has none.

    Raises:
        CheckpointError: transformers does not understand it, or needs code of the folder's that is not trusted.
    """
    if not (model.folder / CONFIG).is_file():
        return None
    return read_config(model.folder, model.where, trust=model.source.trusted)


def refuse_quantized(model: Input) -> None:
    """Refuses a model whose config has `quantization_config`: transformers would quantize plain weights by it, too.

    Raises:
        CheckpointError: it has, whether its weights are quantized or not.
    """
    config = config_of(model)
    if config is None:
        return
    settings = getattr(config, "quantization_config", None)
    settings = settings or getattr(config.get_text_config(), "quantization_config", None)
    if not settings:
        return
    kinds = sorted(set(model.held.dtypes.values()))
    if set(kinds) <= set(CODES.values()):
        raise CheckpointError(
            f"{model.where}: {model.folder / CONFIG} has quantization_config, but the weights are "
            f"{' and '.join(kinds)}; take that key out, for evomerge opens no quantized models"
        )
    raise CheckpointError(
        f"{model.where}: {model.folder} is a quantized checkpoint (quantization_config in {CONFIG}); give the "
        "float16, bfloat16 or float32 one"
    )
