"""Rows of tokens cut into batches by a budget of tokens, padding included."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def cut_batches(rows: Iterable[int], length: Callable[[int], int], tokens: int) -> list[list[int]]:
    """Rows in their order, cut into batches of at most so many tokens, padding included, or of one row.

    Args:
        length: row -> its tokens; a batch is as wide as its longest row.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, length(row))
        if batches and (len(batches[-1]) + 1) * longest <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = length(row)
    return batches
