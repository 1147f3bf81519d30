"""Tensors of random numbers, and one tensor merged by a method, without any file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from evomerge.merging import methods
from evomerge.merging.kernels import passes, tables
from evomerge.merging.methods import TensorInputs


def merge(
    name: str,
    base: torch.Tensor,
    experts: Mapping[str, torch.Tensor],
    options: Mapping[str, bool] | None = None,
    seed: int = 0,
    /,
    **values: Any,
) -> torch.Tensor:
    """One tensor merged eager, with its tables computed on the spot."""
    return _merge(name, base, experts, options, seed, values, compiled=False)


def merge_compiled(
    name: str, base: torch.Tensor, experts: Mapping[str, torch.Tensor], /, **values: Any
) -> torch.Tensor:
    """One tensor merged by a compiled pass, with its tables computed on the spot."""
    return _merge(name, base, experts, None, 0, values, compiled=True)


def _merge(
    name: str,
    base: torch.Tensor,
    experts: Mapping[str, torch.Tensor],
    options: Mapping[str, bool] | None,
    seed: int,
    values: Mapping[str, Any],
    *,
    compiled: bool,
) -> torch.Tensor:
    method = methods.load(name)
    names = tuple(sorted(experts))
    chosen = {**method.OPTIONS, **(options or {})}
    given: dict[str, Any] = {p.name: values.get(p.name, p.default) for p in method.PARAMETERS}
    inputs = TensorInputs(
        name="t",
        experts=names,
        values={
            p.name: tuple(_per_expert(given[p.name], names)) if p.per_expert else (float(given[p.name]),)
            for p in method.PARAMETERS
        },
        options=chosen,
        seed=seed,
        table=lambda kind, which: tables.KINDS[kind].of(base, [experts[expert] for expert in which]),
    )
    out = torch.empty_like(base)
    passes.run(method, chosen, out, base, [experts[e] for e in names], method.scalars(inputs), compiled=compiled)
    return out


def _per_expert(value: Any, names: tuple[str, ...]) -> list[float]:
    return [float(value[name]) if isinstance(value, Mapping) else float(value) for name in names]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers of mean 0 and deviation 1, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
