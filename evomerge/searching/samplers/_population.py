"""How many candidates a generation of an evolution strategy has by default."""

from __future__ import annotations

import math


def default_population(dimensions: int) -> int:
    """4 + ⌊3 ln n⌋ candidates for n dimensions (Hansen 2016, arXiv 1604.00772, table 1)."""
    return 4 + int(3 * math.log(dimensions))
