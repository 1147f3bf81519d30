"""Ways to lay the rows of a tree out in lines and batches, and what each way costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.scoring.forward.costs import Cost
from evomerge.scoring.forward.tree import Tree
from evomerge.scoring.forward.trunks import Trunk, TrunkFinder


@dataclass
class Line:
    """Sorted rows that are forwarded one after the other in one line. length: its tokens."""

    rows: list[int]
    length: int


Chains = list[tuple[tuple[Trunk, ...], list[Line]]]
"""Batches of lines in the order in which they are forwarded, each with the trunks it stands on, shortest first.

No lines are left where only a trunk is forwarded."""


class Layout:
    """One way to forward a tree: in lines of at most `width` tokens, where the tree allows it.

    Args:
        budget: tokens of a batch of several lines, padding included.
        longest: tokens of one line.
        keep: whether to look for trunks that pay.

    Attributes:
        chains: all batches.
        cost: of all batches, in tokens that pass the linear layers.
        forwarded: tokens of all batches, padding included.
        kept: whether there is a trunk.
    """

    def __init__(self, tree: Tree, width: int, budget: int, longest: int, cost: Cost, *, keep: bool) -> None:
        self._tree, self._width = tree, width
        root = TrunkFinder(tree, width, longest, cost.call, keep).root()
        self.chains: Chains = []
        self.cost, self.forwarded = 0.0, 0
        self.kept = bool(root.further)
        waiting: list[tuple[Trunk, ...]] = [(root,)]
        while waiting:
            chain = waiting.pop()
            trunk = chain[-1]
            if trunk.depth:
                length = trunk.depth - trunk.start
                self.cost += cost.call + length * (1 + cost.key * (trunk.depth if trunk.start else trunk.depth / 2))
            batches, added = _cut(self._lines(trunk), trunk.depth, budget, cost)
            self.cost += added
            self.forwarded += sum(len(lines) * lines[0].length for lines in batches) + trunk.depth - trunk.start
            self.chains += [(chain[1:], lines) for lines in batches or ([[]] if trunk.inside else [])]
            waiting += [(*chain, further) for further in reversed(trunk.further)]

    def _lines(self, trunk: Trunk) -> list[Line]:
        """The units of a trunk, one after the other in lines."""
        lines: list[Line] = []
        for unit in trunk.units:
            if lines:
                common = max(trunk.depth, min(self._tree.shared[lines[-1].rows[-1] + 1 : unit.lo + 1]))
                more = self._tree.size(unit, common)
            if not lines or lines[-1].length + more > self._width:
                lines.append(Line([], 0))
                more = self._tree.size(unit, trunk.depth)
            lines[-1].rows += range(unit.lo, unit.hi)
            lines[-1].length += more
        return lines


def alone(tree: Tree, budget: int, cost: Cost, *, pad: bool) -> Chains:
    """Batches in which each row has a line of its own.

    Args:
        pad: False puts only rows of equal length in one batch.
    """
    alike: dict[int, list[Line]] = {}
    for row, length in enumerate(tree.lengths):
        alike.setdefault(0 if pad else length, []).append(Line([row], length))
    return [((), batch) for lines in alike.values() for batch in _cut(lines, 0, budget, cost)[0]]


def _cut(lines: list[Line], past: int, budget: int, cost: Cost) -> tuple[list[list[Line]], float]:
    """The cheapest batches of lines, longest first, of at most `budget` tokens or one line each; and their cost.

    past: the length of the trunk that the lines stand on, in tokens.
    """
    lines = sorted(lines, key=lambda line: -line.length)
    lengths = np.array([line.length for line in lines], dtype=np.int64)
    # A line of one row needs no mask, and what is after a token costs nothing then.
    plain = np.array([past == 0 and len(line.rows) == 1 for line in lines], dtype=bool)
    each = lengths * (1 + cost.key * np.where(plain, lengths / 2, past + lengths))
    least = np.zeros(len(lines) + 1)
    cuts = [0] * (len(lines) + 1)
    first = 0
    for end in range(1, len(lines) + 1):
        while first < end - 1 and (end - first) * lengths[first] > budget:
            first += 1
        totals = least[first:end] + (end - np.arange(first, end)) * each[first:end]
        best = int(totals.argmin())
        cuts[end], least[end] = first + best, totals[best] + cost.call
    batches: list[list[Line]] = []
    end = len(lines)
    while end:
        batches.append(lines[cuts[end] : end])
        end = cuts[end]
    return batches[::-1], float(least[-1])
