"""Whether a model has a row for each token that its tokenizer makes.

Many tokenizers have more tokens than their model's embedding has rows. That is harmless as long as no text holds
such a token; a text that does would stop the model with an index that is out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.models.family import Inputs


def rows_of_inputs(inputs: Inputs) -> int:
    """How many tokens the live model of some inputs can both read and write."""
    return min(inputs.shapes[name][0] for name in inputs.skeleton.rows)


def unknown_token(ids: Sequence[int], rows: int, tokenizer: Any) -> str | None:
    """What is wrong with tokens that go into a matrix with a row for each token; None if nothing is.

    Args:
        ids: token ids.
        rows: the number of the matrix's rows.
    """
    if not ids or max(ids) < rows:
        return None
    first = next(one for one in ids if one >= rows)
    token = tokenizer.convert_ids_to_tokens(first)
    return (
        f"holds the token {token!r} (id {first}), but the model has {rows} tokens; "
        "give the model its own tokenizer, or resize its embedding to the tokenizer's"
    )
