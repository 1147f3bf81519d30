"""Batches by token budget, halved when memory runs out; and what is kept from one candidate to the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch

from evomerge.errors import CandidateError
from evomerge.models.batching import cut_batches

T = TypeVar("T")

SMALL = 16  # tokens of a batch that is not halved any further

LONG = 8  # a line of up to so many batches' tokens is forwarded whole


class Recent(Generic[T]):
    """Keeps the latest few of some values that take long to make."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value that is kept under a key, made if there is none."""
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Drops all values."""
        self._kept.clear()


class Budget:
    """How many tokens, padding included, a batch may have. Shrinks when memory runs out, and stays shrunk.

    Attributes:
        tokens: the limit of a batch of several lines.
        line: the limit of one line.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens, self.line = tokens, LONG * tokens

    @property
    def sizes(self) -> tuple[int, int]:
        """Both limits, which decide how batches are cut."""
        return self.tokens, self.line

    def batches(self, rows: Sequence[int], length: Callable[[int], int]) -> list[list[int]]:
        """Rows in batches, longest rows first. length: row -> its tokens."""
        return cut_batches(sorted(rows, key=lambda row: (-length(row), row)), length, self.tokens)

    def shrink(self, tokens: int) -> None:
        """Halves the limits after a batch of so many tokens ran out of memory.

        Raises:
            CandidateError: the batch was small already, or cannot be cut.
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

        Args:
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
