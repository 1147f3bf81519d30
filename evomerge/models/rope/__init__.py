"""The rotary position embedding (RoPE; Su et al. 2021, arXiv:2104.09864) of a live model.

`reading` tells what a model's rope is, `changing` replaces it in place, `query_scale` scales the attention's scores
and `old_keys` writes a rope for readers that are older than transformers 5. There are no tables of architectures.
"""

from __future__ import annotations

from evomerge.models.rope.changing import set_rope
from evomerge.models.rope.old_keys import portable
from evomerge.models.rope.query_scale import scale_queries
from evomerge.models.rope.reading import (
    FULL,
    SCALING,
    attention_factor,
    dimension,
    layer_type,
    original_length,
    parameters,
    rotary,
)

__all__ = [
    "FULL",
    "SCALING",
    "attention_factor",
    "dimension",
    "layer_type",
    "original_length",
    "parameters",
    "portable",
    "rotary",
    "scale_queries",
    "set_rope",
]
