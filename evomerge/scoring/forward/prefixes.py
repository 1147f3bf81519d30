"""Which tokens to forward when, so that none is forwarded twice: a prefix tree of token rows, cut into batches.

Rows that begin alike share the tokens they begin with. The tree of all rows is walked depth first. A long
beginning that many rows share (few-shot examples, a system prompt) is a *trunk*: it is forwarded once, alone, and
its keys and values are kept while all that stands on it is forwarded. What remains is small subtrees (a document's
context with its choices), which are laid one after the other into *lines*; lines of similar length on one trunk
make a batch. Inside a line each token sees its ancestors only.

Plain numbers: nothing here knows of models or tensors on a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

LINES = (32, 64, 96, 128, 192, 256, 512, 1024)


# Costs are estimates: of layouts within a quarter of the cheapest, those are taken first that forward at most a
# tenth more than the tree holds.
NEAR, TIDY = 1.25, 1.1


@dataclass(frozen=True)
class Cost:
    """What a forward pass costs, counted in tokens that pass the linear layers.

    key: of one token's attention to one key. call: of the pass itself.
    """

    key: float
    call: float


@dataclass(frozen=True)
class Batch:
    """One forward pass. b lines of at most l columns, on the same trunk.

    past: length of the trunk: how many tokens of the path kept so far these lines see.
    keep: whether its one line is a trunk, whose keys and values extend the path.
    ids, depths, ends: (b, l) int64. Tokens; their depths in the tree, which are their positions; and where their
        subtrees end in the line, exclusive: column i sees column j <= i if and only if i < ends[j].
    lengths: columns of each line that hold tokens; the rest is padding, which sees itself.
    under: the batches that this one stands on, by number.
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
class Plan:
    """Batches in the order in which they are forwarded.

    places: for each row, the (tail, 3) places of its last tokens: batch, line and column of each.
    tokens, padding: of all batches. distinct: tokens of the prefix tree.
    """

    batches: list[Batch]
    places: list[np.ndarray]
    tokens: int
    padding: int
    distinct: int


@dataclass
class _Node:
    """A branching of the tree, or a row's end. Sorted rows lo to hi - 1 share `depth` tokens; `deepest` at most."""

    lo: int
    hi: int
    depth: int
    deepest: int = 0
    children: list[_Node] = field(default_factory=list)


class Tree:
    """The prefix tree of distinct rows.

    rows: int64 arrays of one dimension, none empty. Sorted, they are `rows` with `lengths`; `order` says which of
        the given ones each is, and `shared` how many tokens it begins with like the one before it.
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
        """Tokens of the tree."""
        return int(self._sums[-1])

    def size(self, node: _Node, depth: int) -> int:
        """Tokens of a node's rows below a depth that they share."""
        return int(self.lengths[node.lo] - depth + self._sums[node.hi] - self._sums[node.lo + 1])

    def _nodes(self) -> _Node:
        """The nodes, by one pass over the sorted rows. The topmost has depth 0 and all rows."""
        path = [_Node(0, 0, 0)]
        done: list[_Node] = []
        for row, (length, shared) in enumerate(zip([*self.lengths, 0], [*self.shared, 0], strict=True)):
            while path[-1].depth > shared or (path[-1].depth == shared and len(path) > 1 and not path[-1].children):
                last = path.pop()
                last.hi = row
                done.append(last)
                if path[-1].depth < shared:
                    path.append(_Node(last.lo, row, shared))
                path[-1].children.append(last)
            path.append(_Node(row, row + 1, length))
        path[0].hi = len(self.rows)
        for node in (*done, path[0]):
            node.deepest = max([node.depth, *(child.deepest for child in node.children)])
        return path[0]


def _shared(one: np.ndarray, two: np.ndarray) -> int:
    """The number of tokens that two rows begin with alike."""
    length = min(len(one), len(two))
    differ = one[:length] != two[:length]
    return int(differ.argmax()) if differ.any() else length


@dataclass
class _Trunk:
    """A path that is kept: `depth` tokens of sorted row `row`, of which trunks below keep the first `start`.

    units: nodes that stand on it and in no further trunk, each to be forwarded in one line.
    inside: sorted rows that end on its path.
    """

    row: int
    start: int
    depth: int
    units: list[_Node] = field(default_factory=list)
    inside: list[int] = field(default_factory=list)
    further: list[_Trunk] = field(default_factory=list)


@dataclass
class _Line:
    """Sorted rows that are forwarded in one line, and its length."""

    rows: list[int]
    length: int


def plan_passes(
    rows: Sequence[np.ndarray],
    tails: Sequence[int],
    budget: int,
    longest: int,
    cost: Cost,
    *,
    share: bool = True,
    pad: bool = True,
) -> Plan:
    """Batches of one line, or of at most `budget` tokens, that forward each token of the tree once.

    Nearly: a short beginning that two lines share is forwarded in both where to keep it would cost more. Of layouts
    with shorter and longer lines the cheapest is taken, or one nearly as cheap that forwards less.

    rows: distinct.
    longest: tokens of a line. Rows that are longer are forwarded in parts.
    tails: how many of each row's last tokens are wanted, at least 1.
    share: False forwards each row by itself and whole, for models that cannot mask a tree.
    pad: False pads none of them, for models that look at the length of a batch.
    """
    tree = Tree(rows)
    if not share:
        return _Writer(tree, tails).finish(_alone(tree, budget, cost, pad=pad))
    whole = min(budget, longest, max(tree.lengths))
    widths = sorted({whole, *(width for width in LINES if width <= min(budget, longest, 16 * whole))})
    layouts = [_Layout(tree, width, budget, longest, cost, keep=True) for width in widths]
    if any(layout.kept for layout in layouts):
        layouts += [_Layout(tree, width, budget, longest, cost, keep=False) for width in widths]
    cheapest = min(layout.cost for layout in layouts)
    near = [layout for layout in layouts if layout.cost <= NEAR * cheapest]
    tidy = [layout for layout in near if layout.forwarded <= TIDY * tree.distinct]
    return min(tidy or near, key=lambda layout: layout.cost).plan(tails)


class _Layout:
    """One way to forward a tree: in lines of at most `width` tokens, where the tree allows it.

    keep: whether to look for trunks that pay. kept: whether there is one.
    cost: of all batches. forwarded: tokens, padding included.
    """

    def __init__(self, tree: Tree, width: int, budget: int, longest: int, cost: Cost, *, keep: bool) -> None:
        self._tree, self._width, self._longest, self._call = tree, width, longest, cost.call
        self._keep = keep
        root = _Trunk(0, 0, 0)
        self._grow(root)
        self._batches: list[tuple[tuple[_Trunk, ...], list[_Line]]] = []
        self.cost, self.forwarded = 0.0, 0
        self.kept = bool(root.further)
        waiting: list[tuple[_Trunk, ...]] = [(root,)]
        while waiting:
            chain = waiting.pop()
            trunk = chain[-1]
            if trunk.depth:
                length = trunk.depth - trunk.start
                self.cost += cost.call + length * (1 + cost.key * (trunk.depth if trunk.start else trunk.depth / 2))
            batches, added = _cut(self._lines(trunk), trunk.depth, budget, cost)
            self.cost += added
            self.forwarded += sum(len(lines) * lines[0].length for lines in batches) + trunk.depth - trunk.start
            self._batches += [(chain[1:], lines) for lines in batches or ([[]] if trunk.inside else [])]
            waiting += [(*chain, further) for further in reversed(trunk.further)]

    def _grow(self, root: _Trunk) -> None:
        """Finds the trunks that pay, and the units that stand on each."""
        waiting = [(root, _standing(root, self._tree.top))]
        while waiting:
            trunk, nodes = waiting.pop()
            while nodes:
                node = nodes.pop()
                size = self._tree.size(node, trunk.depth)
                if size <= min(self._width, self._longest):
                    trunk.units.append(node)
                    continue
                further, above = self._pays(node, trunk.depth)
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

    def _pays(self, node: _Node, depth: int) -> tuple[_Trunk | None, list[_Node]]:
        """The trunk that should end somewhere on the path from a node down its largest subtrees, if any should.

        It must where a row is too long for one pass.
        """
        path = [node]
        while path[-1].children and path[-1].depth - depth < self._longest:
            path.append(max(path[-1].children, key=lambda child: self._tree.size(child, depth)))
        gains = [self._gain(step, depth) for step in path]
        best = max(range(len(path)), key=gains.__getitem__)
        if gains[best] > 0:
            trunk = _Trunk(path[best].lo, depth, path[best].depth)
            for step in path[:best]:
                trunk.inside += [child.lo for child in step.children if child.depth == step.depth]
            return trunk, _standing(trunk, path[best])
        # Tokens forwarded again if each subtree forwards the path by itself.
        again = (len(node.children) - 1) * (node.depth - depth)
        if node.deepest - depth > self._longest and (not node.children or again > 2 * self._call):
            trunk = _Trunk(node.lo, depth, min(node.depth, depth + self._longest))
            return trunk, _standing(trunk, node) if trunk.depth == node.depth else [node]
        return None, []

    def _gain(self, node: _Node, depth: int) -> float:
        """Tokens saved by keeping the path to a node: all lines but one would forward it again."""
        length = node.depth - depth
        if not self._keep or not node.children or not 0 < length <= self._longest:
            return -math.inf
        below = self._tree.size(node, node.depth)
        lines = min(node.hi - node.lo, math.ceil(below / max(1, self._width - length)))
        return (lines - 1) * length - 2 * self._call

    def _aside(self, trunk: _Trunk, node: _Node) -> list[_Node]:
        """The subtrees that branch off between a node and the end of a trunk on its path."""
        aside: list[_Node] = []
        while node.depth < trunk.depth:
            after = next((child for child in node.children if child.lo <= trunk.row < child.hi), None)
            if after is None:
                break
            aside += [child for child in node.children if child is not after and child.depth > node.depth]
            node = after
        return aside

    def _lines(self, trunk: _Trunk) -> list[_Line]:
        """The units of a trunk, one after the other in lines."""
        lines: list[_Line] = []
        for unit in trunk.units:
            if lines:
                common = max(trunk.depth, min(self._tree.shared[lines[-1].rows[-1] + 1 : unit.lo + 1]))
                more = self._tree.size(unit, common)
            if not lines or lines[-1].length + more > self._width:
                lines.append(_Line([], 0))
                more = self._tree.size(unit, trunk.depth)
            lines[-1].rows += range(unit.lo, unit.hi)
            lines[-1].length += more
        return lines

    def plan(self, tails: Sequence[int]) -> Plan:
        """The layout as arrays."""
        return _Writer(self._tree, tails).finish(self._batches)


def _standing(trunk: _Trunk, node: _Node) -> list[_Node]:
    """What stands on a trunk that ends at a node. Rows that end there too are noted as inside it."""
    if not node.children:
        trunk.inside.append(node.lo)
    trunk.inside += [child.lo for child in node.children if child.depth == node.depth]
    return [child for child in reversed(node.children) if child.depth > node.depth]


def _alone(tree: Tree, budget: int, cost: Cost, *, pad: bool) -> list[tuple[tuple[_Trunk, ...], list[_Line]]]:
    """Each row in a line of its own."""
    alike: dict[int, list[_Line]] = {}
    for row, length in enumerate(tree.lengths):
        alike.setdefault(0 if pad else length, []).append(_Line([row], length))
    return [((), batch) for lines in alike.values() for batch in _cut(lines, 0, budget, cost)[0]]


def _cut(lines: list[_Line], past: int, budget: int, cost: Cost) -> tuple[list[list[_Line]], float]:
    """The cheapest batches of lines, longest first, of at most `budget` tokens or one line each; and their cost."""
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
    batches: list[list[_Line]] = []
    end = len(lines)
    while end:
        batches.append(lines[cuts[end] : end])
        end = cuts[end]
    return batches[::-1], float(least[-1])


class _Writer:
    """Writes batches as arrays, and notes where each row's last tokens stand."""

    def __init__(self, tree: Tree, tails: Sequence[int]) -> None:
        self._tree = tree
        self._tails = [tails[at] for at in tree.order]
        self._batches: list[Batch] = []
        self._places: list[np.ndarray] = [np.empty((0, 3), dtype=np.int64)] * len(tails)

    def finish(self, layout: Sequence[tuple[tuple[_Trunk, ...], list[_Line]]]) -> Plan:
        """The plan of a layout: what is forwarded on which chain of trunks."""
        numbers: dict[int, int] = {}
        for chain, lines in layout:
            for at, trunk in enumerate(chain):
                if id(trunk) not in numbers:
                    numbers[id(trunk)] = len(self._batches)
                    self._keep(trunk, [numbers[id(below)] for below in chain[:at]])
                    self._note_inside(chain[: at + 1], numbers)
            if lines:
                self._write(chain, lines, numbers)
        tokens = sum(sum(batch.lengths) for batch in self._batches)
        padding = sum(batch.ids.size for batch in self._batches) - tokens
        return Plan(self._batches, self._places, tokens, padding, self._tree.distinct)

    def _keep(self, trunk: _Trunk, under: list[int]) -> None:
        ids = self._tree.rows[trunk.row][None, trunk.start : trunk.depth]
        length = trunk.depth - trunk.start
        depths = np.arange(trunk.start, trunk.depth)[None]
        ends = np.full((1, length), length)
        self._batches.append(Batch(trunk.start, True, ids, depths, ends, (length,), tuple(under)))

    def _note_inside(self, chain: Sequence[_Trunk], numbers: dict[int, int]) -> None:
        for row in chain[-1].inside:
            self._note(row, chain, numbers, (0, 0), np.empty(0, dtype=np.int64))

    def _note(
        self, row: int, chain: Sequence[_Trunk], numbers: dict[int, int], at: tuple[int, int], columns: np.ndarray
    ) -> None:
        """Notes the places of a row's last tokens: on its trunks, and in `columns` of batch and line `at`."""
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

    def _write(self, chain: Sequence[_Trunk], lines: list[_Line], numbers: dict[int, int]) -> None:
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
        self._batches.append(
            Batch(
                past=depth,
                keep=False,
                ids=ids,
                depths=depths,
                ends=ends,
                lengths=tuple(line.length for line in lines),
                under=tuple(numbers[id(trunk)] for trunk in chain),
            )
        )
