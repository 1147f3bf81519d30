"""What a method may know of a whole tensor: order statistics, angles, row profiles. The maths; no files.

A candidate needs no sort and no reduction of its own: what does not depend on its coefficients is made once per
study and kept beside it by `merging.table_store`. Each kind of table is a frozen dataclass of numpy arrays with
`of(base, experts)`, which computes it from float tensors of one shape. δk = θk − θ0 is taken in float32 throughout,
as the pass takes it, so that a threshold means the same number in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from evomerge.merging.kernels.dot_products import ColumnGram, Gram, RowGram
from evomerge.merging.kernels.importance import Importance
from evomerge.merging.kernels.order_statistics import Magnitudes, Variances
from evomerge.merging.kernels.row_ranks import RowRanks


class Table(Protocol):
    """A kind of table. Its fields are numpy arrays, and they alone are stored."""

    @classmethod
    def of(cls, base: Tensor, experts: Sequence[Tensor]) -> Any:
        """The table of one tensor, from θ0 and the experts' θk of equal shape.

        Raises:
            ValueError: a value is not finite.
        """


# The name by which a method asks for a table -> its class. The table files carry this name.
KINDS: dict[str, type[Any]] = {
    "magnitude": Magnitudes,
    "gram": Gram,
    "row_gram": RowGram,
    "column_gram": ColumnGram,
    "row_ranks": RowRanks,
    "variance": Variances,
    "importance": Importance,
}
