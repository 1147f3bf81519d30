"""A plan of forward passes as arrays: its batches, and where in them each row's last tokens stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.scoring.forward.layouts import Chains, Line
from evomerge.scoring.forward.tree import Tree
from evomerge.scoring.forward.trunks import Trunk


@dataclass(frozen=True)
class Batch:
    """One forward pass: b lines of at most l columns, on the same trunk.

    Attributes:
        past: the trunk's length: how many tokens of the kept path these lines see.
        keep: whether the only line is a trunk, whose keys and values extend the kept path.
        ids: (b, l) int64, tokens.
        depths: (b, l) int64, the tokens' depths in the tree, which are their positions.
        ends: (b, l) int64, the columns at which the tokens' subtrees end, exclusive: column i sees column j <= i if
            and only if i < ends[j].
        lengths: how many columns of each line hold tokens; the rest is padding, of which each column sees itself.
        under: the numbers of the batches that this one stands on.
    """

    past: int
    keep: bool
    ids: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    lengths: tuple[int, ...]
    under: tuple[int, ...] = ()

    @property
    def branches(self) -> bool:
        """Whether some token does not see all columns before it."""
        return any(
            bool((ends[:length] < length).any()) for ends, length in zip(self.ends, self.lengths, strict=True)
        )


@dataclass(frozen=True)
class PassPlan:
    """Batches in the order in which they are forwarded.

    Attributes:
        places: for each row, (tail, 3) int64: batch, line and column of each of its last tokens.
        tokens, padding: how many the batches hold.
        distinct: how many tokens the prefix tree holds.
    """

    batches: list[Batch]
    places: list[np.ndarray]
    tokens: int
    padding: int
    distinct: int


def write_plan(tree: Tree, tails: Sequence[int], chains: Chains) -> PassPlan:
    """The plan of a layout.

    Args:
        tails: for each row as it was given to the tree, how many of its last tokens are wanted.
    """
    return _Writer(tree, tails).plan(chains)


class _Writer:
    """Writes batches as arrays, and notes where each row's last tokens stand."""

    def __init__(self, tree: Tree, tails: Sequence[int]) -> None:
        self._tree = tree
        self._tails = [tails[at] for at in tree.order]
        self._batches: list[Batch] = []
        self._places: list[np.ndarray] = [np.empty((0, 3), dtype=np.int64)] * len(tails)

    def plan(self, chains: Chains) -> PassPlan:
        """Writes each trunk once, before the first batch that stands on it."""
        numbers: dict[int, int] = {}
        for chain, lines in chains:
            for at, trunk in enumerate(chain):
                if id(trunk) not in numbers:
                    numbers[id(trunk)] = len(self._batches)
                    self._write_trunk(trunk, [numbers[id(below)] for below in chain[:at]])
                    self._note_inside(chain[: at + 1], numbers)
            if lines:
                self._write(chain, lines, numbers)
        tokens = sum(sum(batch.lengths) for batch in self._batches)
        padding = sum(batch.ids.size for batch in self._batches) - tokens
        return PassPlan(self._batches, self._places, tokens, padding, self._tree.distinct)

    def _write_trunk(self, trunk: Trunk, under: list[int]) -> None:
        ids = self._tree.rows[trunk.row][None, trunk.start : trunk.depth]
        length = trunk.depth - trunk.start
        depths = np.arange(trunk.start, trunk.depth)[None]
        ends = np.full((1, length), length)
        self._batches.append(Batch(trunk.start, True, ids, depths, ends, (length,), tuple(under)))

    def _note_inside(self, chain: Sequence[Trunk], numbers: dict[int, int]) -> None:
        """Notes the places of the rows that end on the last trunk of a chain."""
        for row in chain[-1].inside:
            self._note(row, chain, numbers, (0, 0), np.empty(0, dtype=np.int64))

    def _note(
        self, row: int, chain: Sequence[Trunk], numbers: dict[int, int], at: tuple[int, int], columns: np.ndarray
    ) -> None:
        """Notes the places of a row's last tokens, on its trunks and behind them.

        numbers: id of a trunk -> the number of its batch. at: batch and line of the tokens behind the trunks.
        columns: int64, the columns of these tokens.
        """
        length = self._tree.lengths[row]
        first = length - self._tails[row]
        places = np.empty((self._tails[row], 3), dtype=np.int64)
        depth = chain[-1].depth if chain else 0
        for trunk in chain:
            lo, hi = max(first, trunk.start), min(length, trunk.depth)
            if lo < hi:
                places[lo - first : hi - first, :2] = numbers[id(trunk)], 0
                places[lo - first : hi - first, 2] = np.arange(lo, hi) - trunk.start
        if length > depth:
            lo = max(first, depth)
            places[lo - first :, :2] = at
            places[lo - first :, 2] = columns[lo - depth : length - depth]
        self._places[self._tree.order[row]] = places

    def _write(self, chain: Sequence[Trunk], lines: list[Line], numbers: dict[int, int]) -> None:
        """Writes a batch of lines on a chain of trunks, and notes the places of their rows."""
        depth = chain[-1].depth if chain else 0
        width = max(line.length for line in lines)
        ids = np.zeros((len(lines), width), dtype=np.int64)
        depths = np.full((len(lines), width), depth)
        ends = np.tile(np.arange(1, width + 1), (len(lines), 1))
        number = len(self._batches)
        for at, line in enumerate(lines):
            ends[at, : line.length] = line.length
            columns = np.empty(max(self._tree.lengths[row] for row in line.rows) - depth, dtype=np.int64)
            end = before = 0
            for position, row in enumerate(line.rows):
                length = self._tree.lengths[row] - depth
                start = 0
                if position:
                    between = self._tree.shared[line.rows[position - 1] + 1 : row + 1]
                    start = max(0, min(between) - depth)
                    ends[at, columns[start:before]] = end
                fresh = slice(end, end + length - start)
                columns[start:length] = np.arange(fresh.start, fresh.stop)
                ids[at, fresh] = self._tree.rows[row][depth + start :]
                depths[at, fresh] = np.arange(depth + start, depth + length)
                end, before = fresh.stop, length
                self._note(row, chain, numbers, (number, at), columns)
        under = tuple(numbers[id(trunk)] for trunk in chain)
        self._batches.append(Batch(depth, False, ids, depths, ends, tuple(line.length for line in lines), under))
