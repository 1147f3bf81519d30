"""Batches by token budget, halved when memory runs out; and what is kept for the next candidate."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch

from evomerge.errors import CandidateError

T = TypeVar("T")

SMALL = 16  # tokens


LONG = 8  # batches: a line up to that long is forwarded whole


class Recent(Generic[T]):
    """The latest few of what is dear to make."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under a key, made if it is not there."""
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Forgets all."""
        self._kept.clear()


class Budget:
    """How many tokens, padding included, a batch may have. Shrinks when memory runs out, and stays shrunk.

    tokens: of a batch of several lines. line: of one line.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens, self.line = tokens, LONG * tokens

    @property
    def sizes(self) -> tuple[int, int]:
        """What batches made under it depend on."""
        return self.tokens, self.line

    def batches(self, rows: Sequence[int], length: Callable[[int], int]) -> list[list[int]]:
        """Rows, sorted longest first, cut into batches of which each holds at least one row."""
        batches: list[list[int]] = []
        for row in sorted(rows, key=lambda row: (-length(row), row)):
            if batches and (len(batches[-1]) + 1) * length(batches[-1][0]) <= self.tokens:
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches

    def shrink(self, tokens: int) -> None:
        """A batch of so many tokens ran out of memory: later ones have half as many at most.

        Raises:
            CandidateError: it was small already, or cannot be cut.
        """
        half = tokens // 2
        if tokens <= SMALL or (self.tokens <= half and self.line <= half):
            raise CandidateError(f"scoring {tokens} tokens at once runs out of memory; use a smaller model")
        self._limit(half)

    def _limit(self, tokens: int) -> None:
        self.tokens, self.line = min(self.tokens, tokens), min(self.line, tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def halving(self, rows: list[int], length: int, forward: Callable[[list[int]], T]) -> list[T]:
        """`forward(rows)`, or the results of its halves where that runs out of memory.

        length: tokens of the longest row.

        Raises:
            CandidateError: one row alone does not fit.
        """
        try:
            return [forward(rows)]
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise CandidateError(
                    f"scoring one row of {length} tokens runs out of memory; use a smaller model or shorter prompts"
                ) from None
        half = (len(rows) + 1) // 2
        self._limit(half * length)
        return self.halving(rows[:half], length, forward) + self.halving(rows[half:], length, forward)
