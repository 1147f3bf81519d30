"""Which documents a generation is scored on: all, those kept apart, or some blocks of the others.

`documents.Documents` holds the blocks; a `Batches` remembers which of them comes next.
"""

from __future__ import annotations

from evomerge.searching import reliability
from evomerge.searching.documents import Chosen, Documents, union
from evomerge.searching.reliability import Pace
from evomerge.searching.samplers import Generation


class Batches:
    """Hands out the documents of generations.

    Args:
        fresh: whether each generation gets documents of its own; else all get the same.
        adapt: whether the number of blocks follows how well they rank the candidates.

    Attributes:
        pace: decides how many blocks the next generation gets.
    """

    def __init__(self, documents: Documents, *, fresh: bool, adapt: bool) -> None:
        self._documents, self._fresh = documents, fresh
        most = min(reliability.MOST_BLOCKS, max(documents.searching // documents.block, 1))
        self.pace = Pace(adapt, most)
        self._next_block = 0
        self._same: list[Chosen] | None = None

    def skip_to(self, block: int) -> None:
        """Lets the documents of the next generation begin with this block."""
        self._next_block = block

    def blocks(self, asked: Generation) -> list[Chosen] | None:
        """The blocks of a generation; None where it is scored at once, on all documents or on those kept apart."""
        if self._documents.batch is None or asked.select:
            return None
        if not self._fresh:
            return self._same_for_all()
        count = min(self.pace.blocks * asked.effort, max(self._documents.searching // self._documents.block, 1))
        first, self._next_block = self._next_block, self._next_block + count
        return [self._documents.draw(number) for number in range(first, first + count)]

    def chosen(self, asked: Generation, blocks: list[Chosen] | None) -> Chosen | None:
        """The documents of a generation whose blocks are these; None for all documents."""
        if blocks is not None:
            return union(blocks)
        return self._documents.select() if asked.select and self._documents.selecting else None

    def chosen_again(self, asked: Generation) -> Chosen | None:
        """The documents of a generation that was asked for before, where all generations see the same documents."""
        blocks = self._same_for_all() if self._documents.batch is not None and not asked.select else None
        return self.chosen(asked, blocks)

    def _same_for_all(self) -> list[Chosen]:
        """The blocks of every generation, where all generations see the same documents."""
        if self._same is None:
            self._same = [self._documents.draw(number) for number in range(reliability.BLOCKS)]
        return self._same
