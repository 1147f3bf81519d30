"""Stores what mergekit makes of small random tensors, for tests/test_mergekit_parity.py to compare with.

Run by hand, from the repository's root, with an interpreter that has mergekit; the tests themselves need none:

    python -m venv /path/to/env
    /path/to/env/bin/pip install mergekit==0.1.5
    PYTHONPATH=. /path/to/env/bin/python tests/mergekit_reference.py

It writes tests/data/mergekit.safetensors: one result a case, and in its metadata the cases and the versions. The
inputs are not stored: `inputs` makes them again from a case. Two runs write the same bytes.

Cases are written in evomerge's names; `_in_their_names` says what mergekit calls them. mergekit computes in float32
whatever the tensors are stored as, and the result is rounded to the stored type (`dtype`, `out_dtype`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from evomerge.merging.kernels import masks

STORED = Path(__file__).parents[1] / "data" / "mergekit.safetensors"
EXPERTS = "abcd"
TENSOR = "t"  # the name that keys the masks

Values = Mapping[str, float | Mapping[str, float]]


@dataclass(frozen=True)
class Case:
    """One merge of one tensor, in evomerge's names.

    Attributes:
        experts: how many.
        seed: of the inputs and of the masks.
        values: parameter -> one number, or expert -> number.
        options: the method's switches; the others keep their defaults.
        base_scale: standard deviation of the base's elements.
        zeros: the share of elements that an expert has in common with the base.
        unchanged: the experts that equal the base, such as "b".
    """

    method: str
    shape: tuple[int, ...]
    dtype: str
    experts: int
    seed: int
    values: Values
    options: Mapping[str, bool]
    base_scale: float = 1.0
    zeros: float = 0.0
    unchanged: str = ""

    @property
    def id(self) -> str:
        """Such as ties-bfloat16-16x33-3experts-7."""
        shape = "x".join(map(str, self.shape))
        return f"{self.method}-{self.dtype}-{shape}-{self.experts}experts-{self.seed}"

    def value(self, parameter: str, expert: str) -> float:
        """An expert's value of a parameter."""
        value = self.values[parameter]
        return value[expert] if isinstance(value, Mapping) else value


# --- inputs ------------------------------------------------------------------------------------------------

DELTA_SCALE = 0.3  # large enough that mergekit's absolute guards (1e-6 in SCE) stay out of play


def inputs(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """The base and the experts of a case: name -> tensor, of the case's shape and dtype."""
    generator = torch.Generator().manual_seed(case.seed)
    dtype = getattr(torch, case.dtype)
    base = case.base_scale * _normal(case.shape, generator)
    experts = {}
    for name in EXPERTS[: case.experts]:
        delta = DELTA_SCALE * _normal(case.shape, generator)
        zeros = 1.0 if name in case.unchanged else case.zeros
        shared = torch.randint(0, 1000, case.shape, generator=generator) < 1000 * zeros
        experts[name] = torch.where(shared, base, base + delta).to(dtype)
    return base.to(dtype), experts


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """About N(0, 1), float32: the sum of 12 uniforms less 6, in integers so that no machine rounds it otherwise."""
    total = torch.randint(0, 1 << 20, (12, *shape), generator=generator).sum(0)
    return ((total - 6 * (1 << 20)).double() / (1 << 20)).float()


# --- cases -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Parameters and options to try; a list of values is cut to the experts there are.

    The other attributes are those of `Case`, where they shall not take turns.
    """

    values: Mapping[str, float | list[float]] = field(default_factory=dict)
    options: Mapping[str, bool] = field(default_factory=dict)
    experts: int | None = None
    base_scale: float | None = None
    shape: tuple[int, ...] | None = None
    unchanged: str = ""


def _settings(*settings: tuple[Any, ...]) -> list[Setting]:
    return [Setting(*setting) for setting in settings]


UNEQUAL = [0.9, 0.2, 0.5, 0.4]
NEGATIVE = [0.8, -0.3, 0.6, -0.1]
MIXED = [0.3, 0.9, 0.5, 0.7]  # densities
ON, OFF = {"normalize": True}, {"normalize": False}
PARALLEL = 30.0  # a base so large that experts' cosines are near 1
RAW, RESCALED = {"rescale": False}, {"rescale": True}

DROPS = _settings(  # DARE
    ({"weight": 0.5, "density": 0.5}, RAW),
    ({"weight": UNEQUAL, "density": MIXED, "lambda": 0.7}, RAW | ON),
    ({"weight": NEGATIVE, "density": 0.1, "lambda": 1.5}, RAW | OFF),
    ({"weight": NEGATIVE, "density": [0.9, 1.0, 0.2, 0.6], "lambda": 1.0}, RAW | ON),
    ({"weight": UNEQUAL, "density": 1.0, "lambda": 1.2}, RAW | OFF),
    ({"weight": UNEQUAL, "density": 0.3, "lambda": 1.0}, OFF),
    ({"weight": 0.4, "density": 0.6, "lambda": 0.8}, RESCALED | ON),
    ({"weight": NEGATIVE, "density": MIXED, "lambda": 1.1}, RESCALED | OFF),
    ({"weight": 0.6, "density": [0.8, 1.0, 0.1, 0.4]}, RESCALED | OFF),
)
MAGNITUDE_DROPS = _settings(  # DELLA
    ({"weight": 0.5, "density": 0.5, "epsilon": 0.15}, RAW),
    ({"weight": UNEQUAL, "density": MIXED, "epsilon": 0.05, "lambda": 0.7}, RAW | ON),
    ({"weight": NEGATIVE, "density": 0.2, "epsilon": 0.15, "lambda": 1.5}, RAW | OFF),
    ({"weight": NEGATIVE, "density": [0.8, 1.0, 0.4, 0.6], "epsilon": [0.15, 0.1, 0.3, 0.02]}, RAW | ON),
    ({"weight": UNEQUAL, "density": 0.5, "epsilon": 0.49, "lambda": 1.2}, RAW | OFF),
    ({"weight": UNEQUAL, "density": 0.4, "epsilon": 0.3, "lambda": 1.0}, RESCALED | OFF),
    ({"weight": NEGATIVE, "density": MIXED, "epsilon": [0.2, 0.05, 0.3, 0.1], "lambda": 1.1}, RESCALED | OFF),
    ({"weight": 0.6, "density": 0.5, "epsilon": 0.2, "lambda": 0.9}, RESCALED | ON, 1),
)
TRIMS = _settings(
    ({"weight": 0.5, "density": 0.5}, {}),
    ({"weight": UNEQUAL, "density": MIXED, "lambda": 0.7}, RAW | ON),
    ({"weight": NEGATIVE, "density": 0.1, "lambda": 1.5}, RAW | OFF),
    ({"weight": NEGATIVE, "density": [0.9, 1.0, 0.2, 0.6], "lambda": 1.0}, RAW | ON),
    ({"weight": UNEQUAL, "density": 1.0, "lambda": 1.2}, RAW | OFF),
    ({"weight": UNEQUAL, "density": 0.3, "lambda": 1.0}, RESCALED | OFF),
    ({"weight": 0.4, "density": MIXED, "lambda": 0.8}, RESCALED | ON),
    ({"weight": [0.5, -0.5], "density": 0.7}, RAW | ON, 2),
)
OUTLIER_TRIMS = _settings(  # Breadcrumbs
    ({"weight": 0.5, "density": 0.5, "gamma": 0.01}, {}),
    ({"weight": UNEQUAL, "density": MIXED, "gamma": 0.1, "lambda": 0.7}, RAW | ON),
    ({"weight": NEGATIVE, "density": 0.1, "gamma": 0.2, "lambda": 1.5}, RAW | OFF),
    ({"weight": NEGATIVE, "density": [0.9, 1.0, 0.2, 0.6], "gamma": [0.2, 0.1, 0.3, 0.0]}, RAW | ON),
    ({"weight": UNEQUAL, "density": 1.0, "gamma": 0.05, "lambda": 1.2}, RAW | OFF),
    ({"weight": UNEQUAL, "density": 0.3, "gamma": 0.02, "lambda": 1.0}, RESCALED | OFF),
    ({"weight": 0.4, "density": MIXED, "gamma": 0.15, "lambda": 0.8}, RESCALED | ON),
    ({"weight": UNEQUAL, "density": 0.99, "gamma": 0.0, "lambda": 1.0}, RAW | OFF),
)
SPHERES = [
    Setting({"weight": weight}, options)
    for options in ({"task_vectors": False}, {"task_vectors": True})
    for weight in (0.5, UNEQUAL)
]

SETTINGS: dict[str, list[Setting]] = {
    "linear": _settings(
        ({"weight": 0.5}, {}),
        ({"weight": UNEQUAL}, ON),
        ({"weight": NEGATIVE}, ON),
        ({"weight": UNEQUAL}, OFF),
        ({"weight": NEGATIVE}, OFF),
    ),
    "slerp": [
        *(Setting({"t": t}) for t in (0.0, 0.2, 0.5, 0.85, 1.0)),
        Setting({"t": 0.3}, base_scale=PARALLEL),
        Setting({"t": 0.3}, base_scale=0.0),
    ],
    "nuslerp": [
        Setting({"weight": weight}, {"task_vectors": based, **options})
        for based in (False, True)
        for options, weight in (
            ({}, [0.6, 0.4]),
            ({"flatten": True, "row_wise": True}, [0.2, 0.7]),
            ({"flatten": False, "row_wise": False}, [0.9, 0.3]),
            ({"flatten": False, "row_wise": True}, [0.5, 0.5]),
            ({"flatten": False, "row_wise": True}, [1.2, -0.2]),
            ({"flatten": False, "row_wise": False}, [0.5, -0.5]),
        )
    ]
    + [
        Setting({"weight": [0.7, 0.3]}, {"task_vectors": False}, base_scale=PARALLEL),
        Setting({"weight": [0.7, 0.3]}, {"task_vectors": False}, base_scale=0.0, unchanged="b"),
        Setting({"weight": [0.7, 0.3]}, {"flatten": False}, shape=(16, 33), unchanged="a"),
    ],
    "multislerp": [
        *SPHERES,
        Setting({"weight": UNEQUAL}, {"task_vectors": False, "normalize": False}),
        Setting({"weight": UNEQUAL}, {"task_vectors": True, "normalize": False}),
        Setting({"weight": NEGATIVE}, {"task_vectors": True, "normalize": True}),
        Setting({"weight": UNEQUAL}, {"task_vectors": False}, base_scale=PARALLEL),
        Setting({"weight": UNEQUAL}, {"task_vectors": False}, base_scale=0.0, unchanged="b"),
    ],
    "karcher": [
        *(Setting({"weight": weight}) for weight in (1.0, 0.5, UNEQUAL, MIXED)),
        Setting({"weight": UNEQUAL}, base_scale=PARALLEL),
        Setting({"weight": UNEQUAL}, base_scale=0.0, unchanged="b"),
        Setting({"weight": UNEQUAL}, experts=4, base_scale=0.05, shape=(1,)),  # of both signs
    ],
    "task_arithmetic": _settings(
        ({"weight": 0.5}, {}),
        ({"weight": UNEQUAL, "lambda": 0.7}, ON),
        ({"weight": NEGATIVE, "lambda": 1.5}, ON),
        ({"weight": NEGATIVE, "lambda": -0.5}, OFF),
        ({"weight": [0.5, -0.5], "lambda": 1.2}, ON, 2),
    ),
    "ties": TRIMS,
    "dare_linear": DROPS,
    "dare_ties": DROPS,
    "della": MAGNITUDE_DROPS,
    "della_linear": MAGNITUDE_DROPS,
    "breadcrumbs": OUTLIER_TRIMS,
    "breadcrumbs_ties": OUTLIER_TRIMS,
    "sce": [Setting({"select_topk": share}) for share in (1.0, 0.9, 0.5, 0.3, 0.1)],
    "model_stock": [Setting({}, {"filter_wise": filter_wise}) for filter_wise in (False, True) for _ in range(3)],
    "nearswap": [Setting({"t": t}) for t in (0.0, 0.001, 0.1, 0.3, 0.8)],
    "arcee_fusion": [Setting()] * 4,
    "passthrough": [Setting({"scale": scale}) for scale in (1.0, 0.7, -1.5, 0.0)],
    "ram": [Setting({"epsilon": epsilon}) for epsilon in (1e-5, 0.01, 0.1, 0.5)],
}

SHAPES = ((16, 33), (7,), (5, 3, 8), (1,))
DELLA_SHAPES = ((16, 33), (7,), (33, 16), (60,))  # longer rows are interpolated, a lone element is NaN in mergekit
EXPERT_COUNTS = {"slerp": [1], "nearswap": [1], "arcee_fusion": [1], "passthrough": [1], "nuslerp": [2]}


def cases() -> list[Case]:
    """Every setting of every method once in float32 and once in bfloat16, in turning shapes; and the first setting
    once more with an expert that equals the base."""
    return list(_cases())


def _cases() -> Iterator[Case]:
    for number, (method, settings) in enumerate(SETTINGS.items()):
        shapes = DELLA_SHAPES if method.startswith("della") else SHAPES
        counts = EXPERT_COUNTS.get(method, [2, 3, 4])
        unmoved = dataclasses.replace(settings[0], shape=shapes[0], unchanged="a" if counts == [1] else "b")
        for turn, setting in enumerate([*settings, unmoved]):
            for half, dtype in enumerate(("float32", "bfloat16")):
                step = turn + turn // len(shapes) + 2 * half
                count = setting.experts or counts[step % len(counts)]
                scale = (0.05, 0.3, 1.0)[(turn + half) % 3] if setting.base_scale is None else setting.base_scale
                yield Case(
                    method=method,
                    shape=setting.shape or shapes[step % len(shapes)],
                    dtype=dtype,
                    experts=count,
                    seed=100 * number + 2 * turn + half,
                    values={name: _cut(value, count) for name, value in setting.values.items()},
                    options=setting.options,
                    base_scale=scale,
                    zeros=(0.0, 0.25, 0.6)[turn % 3],
                    unchanged=setting.unchanged,
                )


def _cut(value: float | list[float], count: int) -> float | dict[str, float]:
    return dict(zip(EXPERTS[:count], value, strict=False)) if isinstance(value, list) else value


# --- reading -----------------------------------------------------------------------------------------------


def load() -> tuple[dict[str, Case], dict[str, Tensor], dict[str, Any]]:
    """What is stored: id -> case, id -> result, and the versions and names of mergekit."""
    with safe_open(STORED, framework="pt") as file:
        about = json.loads(file.metadata()["reference"])
        results = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stored = [Case(**{**case, "shape": tuple(case["shape"])}) for case in about.pop("cases")]
    return {case.id: case for case in stored}, results, about


# --- mergekit ----------------------------------------------------------------------------------------------

BASELESS = ("linear", "karcher", "passthrough")
RENAMED = {
    ("nuslerp", "flatten"): "nuslerp_flatten",
    ("nuslerp", "row_wise"): "nuslerp_row_wise",
    ("multislerp", "normalize"): "normalize_weights",
}


class HashedBernoulli:
    """Stands in for torch.bernoulli: the same draws as evomerge's masks, for one expert after the other.

    mergekit calls it once for each expert whose density is below 1, in their order.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.waiting = [name for name in EXPERTS[: case.experts] if case.value("density", name) < 1]
        self.probabilities: dict[str, Tensor] = {}

    def __call__(self, probabilities: Tensor) -> Tensor:
        expert = self.waiting.pop(0)
        self.probabilities[expert] = probabilities.double()
        index = torch.arange(probabilities.numel(), dtype=torch.int32).view_as(probabilities)
        keys = (torch.tensor(key, dtype=torch.int32) for key in masks.salt(self.case.seed, expert, TENSOR))
        bits = masks.bits(index, *keys)
        if self.case.method.startswith("dare"):
            kept = bits <= masks.cutoff(self.case.value("density", expert))
        else:
            kept = (bits.double() + 2**31) / 2**32 < probabilities.double()
        return kept.to(probabilities.dtype)


def reference(case: Case) -> Tensor:
    """mergekit's result for a case."""
    if case.method == "karcher":
        return _karcher(case)
    parameters = _in_their_names(case)
    if not case.method.startswith(("dare", "della")):
        return _merge(case, parameters)
    unscaled = {**parameters, "rescale": False}
    bernoulli = HashedBernoulli(case)
    result = _merge(case, unscaled, bernoulli)
    if not case.options.get("rescale", True):
        return result
    factors = _expected_factors(case, bernoulli.probabilities)
    return _merge(case, _scaled(case, unscaled, factors), HashedBernoulli(case))


def _in_their_names(case: Case) -> dict[str, Any]:
    options = {RENAMED.get((case.method, name), name): on for name, on in case.options.items()}
    options.pop("task_vectors", None)  # in mergekit: whether there is a base model
    return {**case.values, **options}


def _merge(case: Case, parameters: Mapping[str, Any], bernoulli: HashedBernoulli | None = None) -> Tensor:
    from mergekit.merge_methods.api import merge_tensors

    base, experts = inputs(case)
    based = case.method not in BASELESS and case.options.get("task_vectors", True)
    tensors = {"base": base, **experts} if based else experts
    with patch.object(torch, "bernoulli", bernoulli) if bernoulli else nullcontext():
        merged: Tensor = merge_tensors(
            list(tensors.values()),
            case.method,
            parameters=parameters,
            ids=list(tensors),
            base_index=0 if based else None,
            dtype=torch.float32,
            out_dtype=base.dtype,
        )
    return merged


def _karcher(case: Case) -> Tensor:
    """By the function behind the method, which takes weights; the method itself has them all equal."""
    from mergekit.merge_methods.karcher import karcher_merge_tensors

    base, experts = inputs(case)
    weights = [case.value("weight", name) for name in experts]
    alphas = [weight / sum(weights) for weight in weights]
    merged: Tensor = karcher_merge_tensors([expert.float() for expert in experts.values()], alphas)
    return merged.to(base.dtype)


def _expected_factors(case: Case, probabilities: Mapping[str, Tensor]) -> dict[str, float]:
    """What evomerge multiplies each expert's kept elements by: Σ|δ| / Σ p·|δ|, which in DARE is 1/density.

    mergekit's own `rescale` divides by the realised Σ m·|δ|, so that a lucky mask is scaled less.
    """
    base, experts = inputs(case)
    factors = dict.fromkeys(experts, 1.0)
    for name, p in probabilities.items():
        if case.method.startswith("dare"):
            factors[name] = 1.0 / case.value("density", name)
        else:
            size = (experts[name].float() - base.float()).abs().double().view_as(p)
            factors[name] = float(size.sum() / (p * size).sum())
    return factors


def _scaled(case: Case, parameters: Mapping[str, Any], factors: Mapping[str, float]) -> dict[str, Any]:
    """Parameters by which mergekit's unrescaled merge is the one with kept elements times their factors.

    Equal factors come out of the merge and go into λ. Unequal ones go into the weights, which is the same as long
    as nothing is divided by these.
    """
    if len(set(factors.values())) == 1:
        return {**parameters, "lambda": parameters.get("lambda", 1.0) * next(iter(factors.values()))}
    if case.options.get("normalize", True):
        raise ValueError(f"{case.id}: with `normalize` and factors that differ there is no such merge")
    return {**parameters, "weight": {name: case.value("weight", name) * factors[name] for name in factors}}


def main() -> None:
    """Writes the results of all cases."""
    from mergekit import merge_methods

    all_cases = cases()
    results = {case.id: reference(case).contiguous().clone() for case in all_cases}
    if len(results) < len(all_cases):
        raise ValueError("two cases have the same id")
    wrong = [name for name, result in results.items() if not math.isfinite(float(result.float().abs().sum()))]
    if wrong:
        raise ValueError(f"mergekit's results are not finite: {wrong}")
    about = {
        "mergekit": version("mergekit"),
        "torch": version("torch").split("+")[0],
        "methods": sorted(method.spec.name for method in merge_methods.registered_methods()),
        "cases": [dataclasses.asdict(case) for case in all_cases],
    }
    STORED.parent.mkdir(exist_ok=True)
    # One metadata entry and not several: safetensors writes these in no fixed order.
    save_file(results, STORED, {"reference": json.dumps(about, separators=(",", ":"))})
    print(f"{STORED}: {len(results)} results, {STORED.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
