"""Hands the documents that prepare.py drew to lm-eval. The tasks' YAML files call these functions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets

CACHE_VARIABLE = "EVOMERGE_SMOLLM2_CACHE"
_DEFAULT_CACHE = Path(__file__).resolve().parents[3] / ".cache" / "smollm2"


def splits(*, skill: str, names: list[str], **_: Any) -> dict[str, datasets.Dataset]:
    """The named splits of a skill; lm-eval passes the task's `dataset_kwargs` and some things of its own.

    Raises:
        FileNotFoundError: the documents have not been made.
    """
    folder = Path(os.environ.get(CACHE_VARIABLE, _DEFAULT_CACHE)) / "data" / skill
    return {name: datasets.Dataset.from_list(_read(folder / f"{name}.jsonl")) for name in names}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Run experiments/smollm2/prepare.py first, "
            f"or set {CACHE_VARIABLE} to the cache that it filled."
        )
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
