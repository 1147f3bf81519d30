"""What a model's config.json says that its headers belie: weights that are quantized, a head that is not there."""

from __future__ import annotations

from typing import Any

from evomerge.errors import CheckpointError
from evomerge.models.checkpoints import CODES
from evomerge.models.file_names import targets
from evomerge.models.input import Input
from evomerge.models.loading import Skeleton, empty_model, read_config
from evomerge.models.tensor_names import TOWERS, module_of, some

CONFIG = "config.json"


def config_of(model: Input) -> Any | None:
    """The transformers config of a model; None where its folder has none.

    Raises:
        CheckpointError: transformers does not understand it, or needs code of the folder's that is not trusted.
    """
    if not (model.folder / CONFIG).is_file():
        return None
    return read_config(model.folder, model.where, trust=model.source.trusted)


def check_config(model: Input, live: Skeleton) -> None:
    """Refuses a whole model whose config does not fit its weights.

    Args:
        live: the live model, as the base's config describes it.

    Raises:
        CheckpointError: the config calls the weights quantized, or the head a tensor of its own that is not there.
    """
    config = config_of(model)
    if config is not None:
        _refuse_quantized(model, config)
        _refuse_headless(model, config, live)


def _refuse_quantized(model: Input, config: Any) -> None:
    """Refuses a config with `quantization_config`, by which transformers would quantize plain weights too."""
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


def _refuse_headless(model: Input, config: Any, live: Skeleton) -> None:
    """Refuses a model without a head whose config does not tie the head to the embedding."""
    lacking = [name for name in live.shapes if name not in model.held and module_of(name) not in TOWERS]
    tied = any(getattr(one, "tie_word_embeddings", False) for one in (config, config.get_text_config()))
    if not lacking or tied or not set(lacking) <= set(live.rows[1:]):
        return
    made = empty_model(model.folder, model.where, trust=model.source.trusted)
    renamed = {target for _, every in targets(made, model.held) for target in every}
    if not renamed.issuperset(lacking):  # GPT-NeoX's files call the head embed_out
        raise CheckpointError(
            f"{model.where}: {model.folder} lacks {some(lacking)}, and its {CONFIG} does not tie the head to the "
            "embedding, so that transformers would fill it with random numbers; set tie_word_embeddings: true "
            "there if the model ties them, else copy it again"
        )
