"""Where mergekit's methods differ from ours, and the filters by which mergekit can tell module groups apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from evomerge.models import tensor_names
from evomerge.models.tensor_names import MODULES


@dataclass(frozen=True)
class Dialect:
    """The differences between one of our methods and mergekit's method of the same name.

    Attributes:
        base: what `base_model` means. "base": the base, which must be given. "optional": the base, without which
            the method works on whole weights (our option `task_vectors`). "input": an input like all others.
        renamed: our option -> its name in mergekit.
        lacking: our parameters that mergekit lacks. Weights are all equal there, other parameters have our default.
        fixed: mergekit's parameters that we lack -> the value that our method amounts to.
        whole: parameters that mergekit takes as whole numbers.
    """

    base: Literal["base", "optional", "input"] = "base"
    renamed: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    fixed: Mapping[str, float] = field(default_factory=dict)
    whole: tuple[str, ...] = ()


_PLAIN = ("task_arithmetic", "slerp", "nearswap", "ties", "dare_linear", "dare_ties", "della", "della_linear")

DIALECTS: dict[str, Dialect] = {
    "linear": Dialect("input"),
    "passthrough": Dialect("input"),
    "karcher": Dialect("input", lacking=("weight",), whole=("max_iter",)),
    "nuslerp": Dialect("optional", {"flatten": "nuslerp_flatten", "row_wise": "nuslerp_row_wise"}),
    "multislerp": Dialect("optional", {"normalize": "normalize_weights"}, fixed={"eps": 1e-8}),
    **{name: Dialect() for name in (*_PLAIN, "breadcrumbs", "breadcrumbs_ties")},
    **{name: Dialect(lacking=("lambda",)) for name in ("sce", "ram", "arcee_fusion", "model_stock")},
}

SUPPORTED = tuple(sorted(DIALECTS))


def group_filters(names: Iterable[str]) -> dict[str, list[str]]:
    """Module group -> the parts of the model's tensor names by which mergekit can tell it."""
    filters: dict[str, set[str]] = {module: set() for module in MODULES}
    for name, place in tensor_names.places(names).items():
        filters[place.module].add(_telling_filter(name, place))
    return {module: sorted(parts) for module, parts in filters.items()}


def _telling_filter(name: str, place: tensor_names.Place) -> str:
    """The telling part of a name with its dots, so that `.mlp.` does not take `post_mlp_layernorm`."""
    if place.module == "other":
        return "." + name.partition(f".{place.layer}.")[2] if place.inside else name
    parts = name.split(".")
    position = parts.index(tensor_names.telling_part(name))
    before, after = "." if position else "", "." if position < len(parts) - 1 else ""
    return before + parts[position] + after
