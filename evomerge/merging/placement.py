"""Where the parents, base and experts, lie while they are merged; `merging.parents` does what is decided here.

- mapped: the live model is on the CPU; a pass reads the memory-mapped files themselves. All workers of a host share
  the page cache, so the host's memory holds one copy of the parents, however many workers there are.
- resident: the parents lie on the GPU beside the live model.
- streamed: the parents do not fit on the GPU. The mapped files are pinned where they lie, so workers still share
  one copy, and each tensor is copied to one of two buffers on the GPU while the tensor before it is merged from the
  other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["mapped", "resident", "streamed"]

RESERVE = 0.2  # of a GPU's memory, left to activations and caches

_PROBE = 256 << 20  # bytes that are copied to measure a speed


@dataclass(frozen=True)
class Room:
    """How many bytes there are.

    Attributes:
        gpu_free: bytes that are free on the GPU; 0 without a GPU.
        gpu_total: bytes of the GPU in all; 0 without a GPU.
        host: bytes of the host's memory that are free, the page cache included.
    """

    gpu_free: int
    gpu_total: int
    host: int


@dataclass(frozen=True)
class Placement:
    """Where the parents lie, and what that takes.

    Attributes:
        kind: where the parents lie.
        gpu_bytes: bytes that each worker takes of its GPU.
        host_bytes: bytes that all workers of this host take of its memory together, the page cache included.
        fits: whether `host_bytes` are free on the host. If not, passes read from disk.
        merge_bytes: bytes that a pass reads and writes.
    """

    kind: Kind
    gpu_bytes: int
    host_bytes: int
    fits: bool
    merge_bytes: int


def room(device: str) -> Room:
    """How many bytes are free now, on this host and on a device such as `cuda:0`."""
    free, total = torch.cuda.mem_get_info(device) if device.startswith("cuda") else (0, 0)
    return Room(free, total, _available())


def _available() -> int:
    """Bytes of memory that the host can give, the page cache included; 2⁶² where the host does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 1 << 62


def decide(
    checkpoint_bytes: int, model_bytes: int, largest: int, *, gpu: bool, workers: int, free: Room
) -> Placement:
    """Decides where the parents lie.

    Args:
        checkpoint_bytes: bytes of base and experts together.
        model_bytes: bytes of the live model.
        largest: bytes of the largest tensor, in base and experts together.
        gpu: whether live models are on GPUs, one for each worker.
        workers: the number of workers on this host.
        free: the bytes that are free before anything is loaded.
    """
    merge_bytes = checkpoint_bytes + model_bytes
    if not gpu:
        host = checkpoint_bytes + workers * model_bytes
        return Placement("mapped", 0, host, host <= free.host, merge_bytes)
    resident = checkpoint_bytes + model_bytes
    if resident <= free.gpu_free - RESERVE * free.gpu_total:
        return Placement("resident", resident, 0, True, merge_bytes)
    fits = checkpoint_bytes <= free.host
    return Placement("streamed", model_bytes + 2 * largest, checkpoint_bytes, fits, merge_bytes)


def speed(kind: Kind, device: str) -> float:
    """The bytes per second that a pass of this kind can move here at best: the median of five copies.

    Each byte counts twice, as read and as written; on its way to the GPU it counts once.
    """
    source = torch.ones(_PROBE, dtype=torch.uint8, pin_memory=kind == "streamed")
    target = torch.zeros(_PROBE, dtype=torch.uint8, device="cpu" if kind == "mapped" else device)
    if kind == "resident":
        source = source.to(device)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        if target.is_cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    median = sorted(times[1:])[2]
    return (1 if kind == "streamed" else 2) * _PROBE / median
