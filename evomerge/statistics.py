"""What a method needs to know of the checkpoints as a whole, computed once per study and kept beside it.

- magnitude: how large |θk − θ0| is at each rank, for each (expert, tensor). The order of magnitudes does not
  depend on the candidate, so a candidate's threshold is a look-up and not a sort.
- cosine: of the angle between θ0 and θk, for each (expert, tensor).

Files are keyed by the content of both checkpoints and rebuilt if damaged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, StudyError

EXACT = 1 << 16  # elements up to which a tensor's magnitudes are kept whole
GRID = 1 << 12  # intervals between the ranks kept of larger tensors: a kept fraction is off by 1/GRID at most
_BLOCK = 1 << 20

Progress = Callable[[str], None]


class Statistics:
    """The tables of one pair of checkpoints (base, expert): tensor name -> array."""

    def __init__(self, kind: str, arrays: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
        self.kind = kind
        self._arrays = arrays
        self._sizes = sizes

    def threshold(self, name: str, density: float) -> float:
        """The magnitude that the largest `density` of the tensor's elements reach.

        Exact to one element up to EXACT elements (ties are all kept); beyond that, the kept fraction is within
        1/GRID of the density. The result is a float32 number.
        """
        table, size = self._arrays[name], self._sizes[name]
        if size == 0:
            return 0.0
        if len(table) == size:
            kept = max(1, round(density * size))
            return float(table[size - kept])
        position = (1.0 - density) * (len(table) - 1)
        left = min(int(position), len(table) - 2)
        share = position - left
        return float(np.float32((1.0 - share) * float(table[left]) + share * float(table[left + 1])))

    def cosine(self, name: str) -> float:
        """The cosine between θ0 and θk of a tensor, in [-1, 1]; 1 where one of them is zero."""
        return float(self._arrays[name][0])


def magnitudes(base: torch.Tensor, expert: torch.Tensor) -> np.ndarray:
    """Order statistics of |θk − θ0|, ascending: float32, all of them or GRID + 1 evenly spaced ranks."""
    delta = (expert.view(-1).float() - base.view(-1).float()).abs_().numpy()
    if not np.isfinite(delta).all():
        raise ValueError("has values that are not finite")
    delta.sort()
    if delta.size <= EXACT:
        return delta
    ranks = np.linspace(0, delta.size - 1, GRID + 1).round().astype(np.int64)
    return delta[ranks]


def cosine(base: torch.Tensor, expert: torch.Tensor) -> np.ndarray:
    """The cosine between two tensors seen as vectors: float64 (1,).

    Summed in blocks of fixed size and those exactly, so that no thread count changes a bit.
    """
    a, b = base.view(-1), expert.view(-1)
    sums = {"ab": [0.0], "aa": [0.0], "bb": [0.0]}
    for start in range(0, a.numel(), _BLOCK):
        x, y = (part[start : start + _BLOCK].double().numpy() for part in (a, b))
        sums["ab"].append(float((x * y).sum()))
        sums["aa"].append(float((x * x).sum()))
        sums["bb"].append(float((y * y).sum()))
    if not all(math.isfinite(part) for parts in sums.values() for part in parts):
        raise ValueError("has values that are not finite")
    norm = math.sqrt(math.fsum(sums["aa"])) * math.sqrt(math.fsum(sums["bb"]))
    value = math.fsum(sums["ab"]) / norm if norm else 1.0
    return np.array([min(max(value, -1.0), 1.0)])


_COMPUTE = {"magnitude": magnitudes, "cosine": cosine}


def load(
    kind: str, base: Checkpoint, expert: Checkpoint, names: list[str], cache: Path, progress: Progress
) -> Statistics:
    """The tables of (base, expert), from the cache folder or computed into it.

    Args:
        kind: "magnitude" or "cosine".
        names: the tensors to cover.
        cache: the folder of the cached files; made if missing.
        progress: told what is being computed.

    Raises:
        CheckpointError: a tensor has values that are not finite.
    """
    path = cache / f"{kind}-{base.sha256[:16]}-{expert.sha256[:16]}.npz"
    sizes = {name: math.prod(base.shapes[name]) for name in names}
    arrays = _read(path, names)
    if arrays is None:
        progress(f"computing the {kind} table of {expert.where}")
        arrays = {name: _compute(kind, base, expert, name) for name in names}
        _write(path, arrays)
    return Statistics(kind, arrays, sizes)


def _compute(kind: str, base: Checkpoint, expert: Checkpoint, name: str) -> np.ndarray:
    try:
        return _COMPUTE[kind](base[name], expert[name])
    except ValueError as error:
        raise CheckpointError(f"{expert.where}: {name} {error} in {expert.folder}, or in the base") from error


def _read(path: Path, names: list[str]) -> dict[str, np.ndarray] | None:
    """The cached arrays; None if there are none, or they are damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            # An .npz entry carries a checksum, which reading verifies.
            return {name: stored[name] for name in names}
    except Exception:  # whatever a damaged zip file raises: it is computed again
        return None


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]
        aside.replace(path)
    except OSError as error:
        raise StudyError(
            f"{path} cannot be written: {error.strerror or error}; the tables of a study go there"
        ) from error
