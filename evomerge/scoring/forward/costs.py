"""What a forward pass costs beside its tokens, by which layouts of batches are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    heads = getattr(text, "num_attention_heads", None) or 1
    width = heads * (getattr(text, "head_dim", None) or getattr(text, "hidden_size", 64) // heads)
    layers = getattr(text, "num_hidden_layers", None) or 1
    key = 3 * 2 * layers * width / max(1, linear)
    return Cost(float(key), _CPU_CALL if model.device.type == "cpu" else _DEVICE_CALL)
