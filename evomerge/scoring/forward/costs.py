"""What a forward pass costs beside its tokens, by which layouts of batches are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evomerge.models.layer_settings import by_layer

# What one forward pass costs besides, counted in tokens.
_CPU_CALL, _DEVICE_CALL = 48.0, 512.0


@dataclass(frozen=True)
class Cost:
    """What a forward pass costs, counted in tokens that pass the linear layers.

    Attributes:
        key: the cost of one token's attention to one key.
        call: the cost of the pass itself.
    """

    key: float
    call: float


def cost_of(model: Any) -> Cost:
    """What attention and a forward pass cost a model.

    Counts multiplications by the matrices' shapes. Those of attention count three times, because softmax, masks and
    small matrices run slower than large matrices.
    """
    text = model.config.get_text_config()
    embedded = {id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one}
    linear = sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in embedded)
    settings = [by_layer(text, name) for name in ("num_attention_heads", "head_dim", "hidden_size")]
    widths = [_width(*layer) for layer in zip(*settings, strict=True)]
    key = 3 * 2 * sum(widths) / max(1, linear)
    return Cost(float(key), _CPU_CALL if model.device.type == "cpu" else _DEVICE_CALL)


def _width(heads: int | None, head: int | None, hidden: int | None) -> int:
    """The width of a layer's attention, from what its config says of heads, of one head's size and of the body."""
    heads = heads or 1
    return heads * (head or (hidden or 64) // heads)
