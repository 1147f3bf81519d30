"""The lines of the zoo's table, and their first columns: what transformers makes of an architecture by itself."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
import zoo_models
from zoo_models import Architecture

from evomerge.errors import one_line


@dataclass
class Row:
    """A line of the table.

    Attributes:
        name, kind: the architecture.
        tensors: how many the base's file has.
        result: built, unbuilt; once it is checked whole, refused or wrong.
        problems: what is wrong or refused, a line each, which begins with the letter of its check.
        notes: what else there is to know.
        shared, full_forward: those of the scorer; None where there is none.
        seconds: how long it took.
    """

    name: str
    kind: str
    tensors: int = 0
    result: str = "built"
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shared: bool | None = None
    full_forward: bool | None = None
    seconds: float = 0.0


def build(one: Architecture, home: Path) -> Row:
    """Saves a base and two experts in a folder, and says whether the base speaks when it is given a text alone."""
    row, start = Row(one.name, one.kind), time.perf_counter()
    try:
        model = zoo_models.build_family(one, home)
        _check_load(one, home / "ant")
        row.tensors = len(zoo_models.tensors_of(home / "base"))
    except Exception as error:
        row.result, row.problems = "unbuilt", [told(error)]
    else:
        try:
            zoo_models.check_alive(model)
        except Exception as error:
            row.notes.append(f"not run by a text alone: {told(error)}")
    row.seconds = time.perf_counter() - start
    return row


def _check_load(one: Architecture, folder: Path) -> None:
    """Checks that transformers loads what it has saved: that it would save the same again.

    Raises:
        ValueError: it loads another model.
    """
    saved = zoo_models.tensors_of(folder)
    again = folder.parent / "again"
    getattr(transformers, one.kind).from_pretrained(folder).save_pretrained(again)
    found = zoo_models.tensors_of(again)
    apart = [name for name in saved if name not in found or not torch.equal(saved[name], found[name])]
    if apart := [name for name in apart if ".carried." not in name]:
        raise ValueError(f"transformers loads {len(apart)} other tensors than it saved, such as {apart[0]}")


def told(error: BaseException) -> str:
    """An exception in one line, with the place in the code that raised it and the last place in evomerge."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "evomerge" in Path(frame.filename).parts]
    places = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [*ours[-1:], frames[-1]])
    return f"{one_line(error)[:200]} ({', '.join(places)})"
