"""The prefix tree of token rows: which rows begin alike, and for how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Node:
    """A branching of the tree, or the end of a row.

    Attributes:
        lo, hi: the sorted rows lo to hi - 1 pass through this node.
        depth: how many tokens these rows share.
        deepest: the greatest depth of a node below.
    """

    lo: int
    hi: int
    depth: int
    deepest: int = 0
    children: list[Node] = field(default_factory=list)


class Tree:
    """The prefix tree of distinct rows.

    Args:
        rows: int64 arrays of one dimension, none empty.

    Attributes:
        rows, lengths: the rows in sorted order, and their lengths.
        order: for each sorted row, its number among the given ones.
        shared: for each sorted row, how many tokens it begins with like the one before it.
        top: the topmost node, of depth 0, which has all rows.
    """

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        keys = [row.astype(">u4").tobytes() for row in rows]
        self.order = sorted(range(len(rows)), key=keys.__getitem__)
        self.rows = [rows[at] for at in self.order]
        self.lengths = [len(row) for row in self.rows]
        self.shared = [0, *(_shared(one, two) for one, two in zip(self.rows, self.rows[1:], strict=False))]
        fresh = np.array(self.lengths) - np.array(self.shared)
        self._sums = [0, *np.cumsum(fresh).tolist()]
        self.top = self._nodes()

    @property
    def distinct(self) -> int:
        """How many tokens the tree holds."""
        return int(self._sums[-1])

    def size(self, node: Node, depth: int) -> int:
        """How many tokens of the tree a node's rows hold below a depth that they share."""
        return int(self.lengths[node.lo] - depth + self._sums[node.hi] - self._sums[node.lo + 1])

    def _nodes(self) -> Node:
        """Makes the nodes in one pass over the sorted rows, and returns the topmost."""
        path = [Node(0, 0, 0)]
        done: list[Node] = []
        for row, (length, shared) in enumerate(zip([*self.lengths, 0], [*self.shared, 0], strict=True)):
            while path[-1].depth > shared or (path[-1].depth == shared and len(path) > 1 and not path[-1].children):
                last = path.pop()
                last.hi = row
                done.append(last)
                if path[-1].depth < shared:
                    path.append(Node(last.lo, row, shared))
                path[-1].children.append(last)
            path.append(Node(row, row + 1, length))
        path[0].hi = len(self.rows)
        for node in (*done, path[0]):
            node.deepest = max([node.depth, *(child.deepest for child in node.children)])
        return path[0]


def _shared(one: np.ndarray, two: np.ndarray) -> int:
    """The number of tokens that two rows begin with alike."""
    length = min(len(one), len(two))
    differ = one[:length] != two[:length]
    return int(differ.argmax()) if differ.any() else length
