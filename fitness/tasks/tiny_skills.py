"""The documents of the `tiny_*` tasks, made on the spot: no file and no network is needed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import datasets

from evomerge.scoring.documents import skills


def dataset(skill: str, split: skills.Split, count: int, **_: Any) -> dict[str, datasets.Dataset]:
    """`count` documents of a skill, each {prompt, choices, gold}, as lm-eval's `custom_dataset` wants them.

    lm-eval also passes the task's `metadata`, which has no part in it.
    """
    rows = [asdict(document) for document in skills.documents(skill, split, count)]
    return {"test": datasets.Dataset.from_list(rows)}
