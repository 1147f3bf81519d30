"""Merge methods, one a file. A new file here is a new method; nothing else has to change.

A method says what to do with one tensor's elements, given the base, the experts and a few scalars. Its module
holds:

- a docstring: the formula, the paper, what each parameter means;
- `PARAMETERS`: tuple of `Parameter`, the coefficients that may vary by layer, module group and expert;
- `OPTIONS`: dict of the switches that hold for the whole model, with their defaults;
- `EXPERTS`: (fewest, most) experts it takes; most is None where there is no limit;
- `TABLES`: which tables of `evomerge.statistics` it looks up: a subset of {"magnitude", "cosine"};
- `INDEXED`: whether `merge` needs the element indices (for hashed masks);
- `scalars(tensor: TensorInputs) -> dict[str, list[float] | list[int]]`: everything about one tensor that does
  not depend on the element, in Python floats: thresholds looked up, mask keys, divisors. Floats become float32
  tensors and ints int32 tensors of shape (len,);
- `merge(base, experts, s, options) -> Tensor`: the elementwise pass. `base` and each of `experts` are float32
  blocks of shape (n,); `s` has what `scalars` returned, and `s["index"]`, int32 (n,), if `INDEXED`. Returns
  float32 (n,). Plain torch elementwise operations only: the same code runs eager and compiled, with equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Parameter:
    """A coefficient of a method.

    Attributes:
        per_expert: one value for each expert, or one for all of them together.
        low, high: the range of sound values, inclusive unless `open_low`.
        default: the value where a recipe gives none; None makes it required.
    """

    name: str
    per_expert: bool = False
    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    default: float | None = None

    def fault(self, value: float) -> str | None:
        """Why a value is unsound, or None."""
        above = value > self.low if self.open_low else value >= self.low
        if above and value <= self.high:
            return None
        return f"must lie in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}], but is {value:g}"


@dataclass(frozen=True)
class TensorInputs:
    """What `scalars` may use about one tensor.

    Attributes:
        name: the tensor's name; with `seed` and an expert's name it keys a mask.
        experts: the experts' names, in the order of `merge`'s `experts`.
        values: parameter -> its values for this tensor: K of them if per expert, else one.
        options: the method's options.
        threshold: (expert, density) -> the magnitude |θk − θ0| that the kept fraction reaches; None unless the
            method's TABLES has "magnitude".
        cosine: expert -> cosine between θ0 and θk; empty unless TABLES has "cosine".
    """

    name: str
    experts: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]
    options: Mapping[str, bool]
    seed: int
    threshold: Callable[[str, float], float] | None = None
    cosine: Mapping[str, float] = field(default_factory=dict)


WEIGHT = Parameter("weight", per_expert=True)
DENSITY = Parameter("density", per_expert=True, low=0.0, high=1.0, open_low=True)
LAMBDA = Parameter("lambda", default=1.0)
