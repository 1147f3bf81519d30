"""Trunks: beginnings of many rows that are forwarded once, and whose keys and values are kept meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from evomerge.scoring.forward.tree import Node, Tree


@dataclass
class Trunk:
    """A path of the tree that is kept.

    Attributes:
        row: a sorted row that begins with the path.
        start: how many of the path's tokens are kept by the trunk that this one stands on.
        depth: the path's length, in tokens.
        units: the nodes that stand on this trunk and on no further one; each is forwarded in one line.
        inside: the sorted rows that end on the path.
        further: the trunks that stand on this one.
    """

    row: int
    start: int
    depth: int
    units: list[Node] = field(default_factory=list)
    inside: list[int] = field(default_factory=list)
    further: list[Trunk] = field(default_factory=list)


@dataclass(frozen=True)
class TrunkFinder:
    """Finds the trunks of a tree that save more tokens than they cost.

    Attributes:
        width: the length of lines at which to aim, in tokens.
        longest: the greatest length of a line, in tokens.
        call: the cost of a forward pass, see `costs.Cost`.
        keep: False takes only the trunks that rows need because they are too long for one pass.
    """

    tree: Tree
    width: int
    longest: int
    call: float
    keep: bool

    def root(self) -> Trunk:
        """The empty trunk that everything stands on, with all further trunks and their units."""
        root = Trunk(0, 0, 0)
        waiting = [(root, _standing(root, self.tree.top))]
        while waiting:
            trunk, nodes = waiting.pop()
            while nodes:
                node = nodes.pop()
                size = self.tree.size(node, trunk.depth)
                if size <= min(self.width, self.longest):
                    trunk.units.append(node)
                    continue
                further, above = self._that_pays(node, trunk.depth)
                if further is not None:
                    trunk.further.append(further)
                    waiting.append((further, above))
                    nodes += self._aside(further, node)
                elif node.children:
                    nodes += reversed(node.children)
                else:
                    trunk.units.append(node)
            trunk.units.sort(key=lambda node: (node.lo, -node.hi))
            trunk.further.sort(key=lambda further: further.row)
        return root

    def _that_pays(self, node: Node, depth: int) -> tuple[Trunk | None, list[Node]]:
        """The trunk that should end on the path from a node down its largest subtrees; None if none should.

        A trunk must end there where a row is too long for one pass.

        Returns: the trunk, and the nodes that stand on it.
        """
        path = [node]
        while path[-1].children and path[-1].depth - depth < self.longest:
            path.append(max(path[-1].children, key=lambda child: self.tree.size(child, depth)))
        gains = [self._gain(step, depth) for step in path]
        best = max(range(len(path)), key=gains.__getitem__)
        if gains[best] > 0:
            trunk = Trunk(path[best].lo, depth, path[best].depth)
            for step in path[:best]:
                trunk.inside += [child.lo for child in step.children if child.depth == step.depth]
            return trunk, _standing(trunk, path[best])
        # Tokens forwarded again if each subtree forwards the path by itself.
        again = (len(node.children) - 1) * (node.depth - depth)
        if node.deepest - depth > self.longest and (not node.children or again > 2 * self.call):
            trunk = Trunk(node.lo, depth, min(node.depth, depth + self.longest))
            return trunk, _standing(trunk, node) if trunk.depth == node.depth else [node]
        return None, []

    def _gain(self, node: Node, depth: int) -> float:
        """Tokens saved by keeping the path to a node: all lines but one would forward it again."""
        length = node.depth - depth
        if not self.keep or not node.children or not 0 < length <= self.longest:
            return -math.inf
        below = self.tree.size(node, node.depth)
        lines = min(node.hi - node.lo, math.ceil(below / max(1, self.width - length)))
        return (lines - 1) * length - 2 * self.call

    def _aside(self, trunk: Trunk, node: Node) -> list[Node]:
        """The subtrees that branch off between a node and the end of a trunk on its path."""
        aside: list[Node] = []
        while node.depth < trunk.depth:
            after = next((child for child in node.children if child.lo <= trunk.row < child.hi), None)
            if after is None:
                break
            aside += [child for child in node.children if child is not after and child.depth > node.depth]
            node = after
        return aside


def _standing(trunk: Trunk, node: Node) -> list[Node]:
    """The nodes that stand on a trunk whose end is `node`; rows that end there are noted as inside the trunk."""
    if not node.children:
        trunk.inside.append(node.lo)
    trunk.inside += [child.lo for child in node.children if child.depth == node.depth]
    return [child for child in reversed(node.children) if child.depth > node.depth]
