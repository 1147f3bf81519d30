"""Which tokens to forward when, so that none is forwarded twice: a prefix tree of token rows, cut into batches.

Rows that begin alike share the tokens they begin with. The tree of all rows is walked depth first. A long
beginning that many rows share (few-shot examples, a system prompt) is a *trunk*: it is forwarded once, alone, and
its keys and values are kept while all that stands on it is forwarded. What remains is small subtrees (a document's
context with its choices), which are laid one after the other into *lines*; lines of similar length on one trunk
make a batch. Inside a line each token sees its ancestors only.

Plain numbers: this module, `tree`, `trunks`, `layouts` and `pass_plan` know neither models nor tensors on a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.scoring.forward.costs import Cost
from evomerge.scoring.forward.layouts import Layout, alone
from evomerge.scoring.forward.pass_plan import PassPlan, write_plan
from evomerge.scoring.forward.tree import Tree

LINES = (32, 64, 96, 128, 192, 256, 512, 1024)
"""Lengths of lines that are compared, in tokens."""

# Costs are estimates: of layouts within a quarter of the cheapest, those are taken first that forward at most a
# tenth more than the tree holds.
NEAR, TIDY = 1.25, 1.1


def plan_passes(
    rows: Sequence[np.ndarray],
    tails: Sequence[int],
    budget: int,
    longest: int,
    cost: Cost,
    *,
    share: bool = True,
    pad: bool = True,
) -> PassPlan:
    """Batches of one line, or of at most `budget` tokens, that forward nearly each token of the tree once.

    A short beginning that two lines share is forwarded in both where keeping it would cost more. Of layouts with
    shorter and longer lines the cheapest is taken, or one nearly as cheap that forwards less.

    Args:
        rows: int64 token ids, distinct rows.
        tails: how many of each row's last tokens are wanted, at least 1.
        longest: tokens of a line. Rows that are longer are forwarded in parts.
        share: False forwards each row by itself and whole, for models that cannot mask a tree.
        pad: False pads no row that is forwarded by itself, for models that look at the length of a batch.
    """
    tree = Tree(rows)
    if not share:
        return write_plan(tree, tails, alone(tree, budget, cost, pad=pad))
    whole = min(budget, longest, max(tree.lengths))
    widths = sorted({whole, *(width for width in LINES if width <= min(budget, longest, 16 * whole))})
    layouts = [Layout(tree, width, budget, longest, cost, keep=True) for width in widths]
    if any(layout.kept for layout in layouts):
        layouts += [Layout(tree, width, budget, longest, cost, keep=False) for width in widths]
    cheapest = min(layout.cost for layout in layouts)
    near = [layout for layout in layouts if layout.cost <= NEAR * cheapest]
    tidy = [layout for layout in near if layout.forwarded <= TIDY * tree.distinct]
    best = min(tidy or near, key=lambda layout: layout.cost)
    return write_plan(tree, tails, best.chains)
