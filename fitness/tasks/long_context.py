"""The documents of the `passkey*`, `needle*` and `long_tail*` tasks, made by `scoring.documents`.

For tasks of your own copy this file beside them; the paths of texts are relative to its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from evomerge.scoring.documents import long_context

FOLDER = Path(__file__).resolve().parent


def passkey(**given: Any) -> dict[str, datasets.Dataset]:
    """A number hidden in filler, for lm-eval's `custom_dataset`; options as in `long_context.passkey`."""
    return _split("passkey", given)


def needle(**given: Any) -> dict[str, datasets.Dataset]:
    """A fact hidden in running text; options as in `long_context.needle`."""
    return _split("needle", given)


def long_tail(**given: Any) -> dict[str, datasets.Dataset]:
    """The end of a passage after more or less context; options as in `long_context.long_tail`."""
    return _split("long_tail", given)


def per_byte(document: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """The log-likelihood of a tail, in nats per byte: a greater value is better."""
    return {"loglikelihood_per_byte": results[0][0] / len(document["tail"].encode())}


def _split(kind: str, given: dict[str, Any]) -> dict[str, datasets.Dataset]:
    return {"test": datasets.Dataset.from_list(long_context.rows(kind, given, FOLDER))}
