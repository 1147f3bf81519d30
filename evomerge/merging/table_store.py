"""Keeps the tables of `merging.kernels.tables` beside a study: made once, keyed by the checkpoints' content.

A file holds one kind of table for all tensors of a base and some experts. It is memory-mapped, so the workers of a
host share one copy. It carries the hash of its content: a damaged file is made again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import CheckpointError
from evomerge.files import hashed_tensors
from evomerge.merging.kernels.tables import KINDS
from evomerge.models import Progress
from evomerge.models.checkpoints import Checkpoint

_VERSION = "2"  # part of every file's name: goes up when a table means something else


class Statistics:
    """The tables of a family of checkpoints.

    Args:
        base, experts: opened checkpoints; the experts by name.
        names: the tensors that every table covers.
        cache: the folder of the table files; made if missing.
        progress: told which table is being computed.
    """

    def __init__(
        self,
        base: Checkpoint,
        experts: Mapping[str, Checkpoint],
        names: Sequence[str],
        cache: Path,
        progress: Progress = lambda text: None,
    ) -> None:
        self._base, self._experts = base, dict(experts)
        self._names = list(names)
        self._cache, self._progress = cache, progress
        self._open: dict[tuple[str, ...], Mapping[str, torch.Tensor]] = {}
        self._made: dict[tuple[str, ...], Any] = {}

    def table(self, kind: str, experts: Sequence[str], name: str) -> Any:
        """The table of one tensor for some experts in their order.

        kind: a name of `merging.kernels.tables.KINDS`.

        Raises:
            CheckpointError: a tensor has values that are not finite.
            StudyError: the cache cannot be written.
        """
        key = (kind, name, *experts)
        if key not in self._made:
            stored = self._load(kind, tuple(experts))
            parts = {field.name: stored[f"{name}|{field.name}"].numpy() for field in fields(KINDS[kind])}
            self._made[key] = KINDS[kind](**parts)
        return self._made[key]

    def _load(self, kind: str, experts: tuple[str, ...]) -> Mapping[str, torch.Tensor]:
        """A table file's arrays, `tensor|field` -> array; computed and written if there is no sound file."""
        if (kind, *experts) not in self._open:
            opened = [self._experts[expert] for expert in experts]
            content = "\n".join([_VERSION, kind, self._base.sha256, *(expert.sha256 for expert in opened)])
            path = self._cache / f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
            wanted = {f"{name}|{field.name}" for name in self._names for field in fields(KINDS[kind])}
            stored = hashed_tensors.read(path)
            arrays = stored[0] if stored and stored[0].keys() == wanted else None
            if arrays is None:
                self._progress(f"computing the {kind.replace('_', ' ')} table of {', '.join(experts)}")
                arrays = self._compute(kind, opened)
                hashed_tensors.write(path, arrays, advice="the tables of a study go there")
            self._open[kind, *experts] = arrays
        return self._open[kind, *experts]

    def _compute(self, kind: str, experts: Sequence[Checkpoint]) -> dict[str, torch.Tensor]:
        """The arrays of one kind of table for all tensors, `tensor|field` -> array."""
        arrays: dict[str, torch.Tensor] = {}
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for part in pool.map(lambda name: self._compute_one(kind, experts, name), self._names):
                arrays |= part
        return arrays

    def _compute_one(self, kind: str, experts: Sequence[Checkpoint], name: str) -> dict[str, torch.Tensor]:
        try:
            table = KINDS[kind].of(self._base[name], [expert[name] for expert in experts])
        except ValueError as error:
            parents = (self._base, *experts)
            at_fault = next((one for one in parents if not bool(one[name].isfinite().all())), experts[0])
            raise CheckpointError(
                f"{at_fault.where}: {name} {error} in {at_fault.folder}; copy it again, or leave it out"
            ) from error
        arrays = {field.name: torch.from_numpy(getattr(table, field.name)) for field in fields(table)}
        _give_back_memory()
        return {f"{name}|{key}": array.contiguous() for key, array in arrays.items()}


def _give_back_memory() -> None:
    """Returns freed memory to the system. The arrays of each table lie between the blocks that were freed, so glibc
    would keep gigabytes of these blocks. Other C libraries have no such function, and no such need."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
