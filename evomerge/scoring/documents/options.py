"""Faults of a document maker's options, each one line, or None where there is none."""

from __future__ import annotations

from typing import Any, get_args

from evomerge.scoring.documents.texts import Half


def refuse(*faults: str | None) -> None:
    """Refuses options that have faults.

    Raises:
        ValueError: all faults, in one line.
    """
    told = [fault for fault in faults if fault]
    if told:
        raise ValueError("; ".join(told))


def whole_number_fault(name: str, value: Any, least: int, most: int | None = None) -> str | None:
    """The fault of an option that is to be a whole number from `least` to `most`; None for `most` is no limit."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and value >= least and (most is None or value <= most):
        return None
    limit = f"{least} or more" if most is None else f"{least} to {most}"
    return f"{name}: is {value!r}; give a whole number, {limit}"


def depth_fault(depth: Any) -> str | None:
    """The fault of a depth, which is to be a number from 0 to 1, or "random"."""
    number = isinstance(depth, int | float) and not isinstance(depth, bool) and 0 <= depth <= 1
    return None if number or depth == "random" else f"depth: is {depth!r}; give a number from 0 to 1, or random"


def common_faults(count: Any, seed: Any, split: Any, depth: Any = "random") -> list[str | None]:
    """The faults of the options that all makers have."""
    return [
        whole_number_fault("count", count, 1),
        depth_fault(depth),
        whole_number_fault("seed", seed, 0),
        None if split in get_args(Half) else f"split: is {split!r}; give {' or '.join(get_args(Half))}",
    ]
