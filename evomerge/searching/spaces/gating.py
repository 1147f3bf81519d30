"""What switches and sources do to a recipe's weights, and to the derivatives in them.

They are given as openings: a table that has, for each row, expert and layer, 1 where the expert takes part, else 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError
from evomerge.models.tensor_names import MODULES, is_pattern
from evomerge.recipes.canonical import ANY, Table


def gated(weights: Table, openings: Table, layers: int) -> Table:
    """The weights of experts that take part, and 0 for the others.

    Args:
        weights: a recipe's table of weights.

    Raises:
        ConfigError: no table can say it, because a tensor may match a pattern of one of the two and none of the
            other.
    """
    patterns, others = ([row for row in table if is_pattern(row)] for table in (weights, openings))
    if patterns != others and len(weights) > 1 and len(openings) > 1:
        raise ConfigError(
            "space",
            ["fixed.weight: has not the patterns that modules has, in their order; search it, or give both"],
        )
    table: Table = {}
    for row in (*(patterns or others), *MODULES):
        open_here = _at(openings, row)
        table[row] = {}
        for expert, values in _at(weights, row).items():
            by_layer = values if isinstance(values, list) else [values] * layers
            table[row][expert] = [w if s else 0.0 for w, s in zip(by_layer, open_here[expert], strict=True)]
    return table


def through(
    slopes: Mapping[str, Mapping[str, Sequence[float]]], openings: Table
) -> dict[str, dict[str, list[float]]]:
    """The derivatives in the weights of experts that take part, and 0 for the others: `gated`, transposed.

    Args:
        slopes: row -> expert -> derivatives by layer.
    """
    return {
        row: {
            expert: [slope if share else 0.0 for slope, share in zip(own, _at(openings, row)[expert], strict=True)]
            for expert, own in experts.items()
        }
        for row, experts in slopes.items()
    }


def _at(table: Table, row: str) -> dict[str, Any]:
    """A table's row of that name, else its row for all that are not named."""
    return table[row] if row in table else table[ANY]
