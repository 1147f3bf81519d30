"""Where checkpoints lie while they are merged, and how a pass gets at their tensors.

- mapped: the live model is on the CPU; a pass reads the memory-mapped files themselves. All workers of a host share
  the page cache, so there is one copy of the experts in memory however many there are.
- resident: base and experts lie on the GPU beside the live model.
- streamed: they do not fit there. The mapped files are pinned where they lie, so workers still share one copy, and
  each tensor is copied to one of two buffers on the GPU while the tensor before it is merged from the other.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from evomerge.models.checkpoints import Checkpoint

Kind = Literal["mapped", "resident", "streamed"]

RESERVE = 0.2  # of a GPU's memory, left to activations and caches


_PROBE = 256 << 20  # bytes that are copied to measure a speed


@dataclass(frozen=True)
class Room:
    """Bytes that are free: on the GPU (0 without one), on it in all, and in the host's memory."""

    gpu_free: int
    gpu_total: int
    host: int


@dataclass(frozen=True)
class Plan:
    """What residency was chosen, and why.

    Attributes:
        kind: where base and experts lie.
        gpu_bytes: what each worker takes of its GPU.
        host_bytes: what all workers of this host take of its memory together, the page cache included.
        fits: whether that is free on the host. If not, passes read from disk.
        merge_bytes: what a pass reads and writes.
    """

    kind: Kind
    gpu_bytes: int
    host_bytes: int
    fits: bool
    merge_bytes: int


def room(device: str) -> Room:
    """What is free now."""
    free, total = torch.cuda.mem_get_info(device) if device.startswith("cuda") else (0, 0)
    return Room(free, total, _available())


def _available() -> int:
    """Bytes of memory that the host can give, page cache included; a very large number where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 1 << 62


def plan(checkpoint_bytes: int, model_bytes: int, largest: int, *, gpu: bool, workers: int, free: Room) -> Plan:
    """Decides where checkpoints lie.

    Args:
        checkpoint_bytes: of base and experts together.
        model_bytes: of the live model.
        largest: bytes of base's and experts' largest tensor, all of them together.
        gpu: whether live models are on GPUs, one for each worker.
        workers: on this host.
        free: what is free before anything is loaded.
    """
    merge_bytes = checkpoint_bytes + model_bytes
    if not gpu:
        host = checkpoint_bytes + workers * model_bytes
        return Plan("mapped", 0, host, host <= free.host, merge_bytes)
    resident = checkpoint_bytes + model_bytes
    if resident <= free.gpu_free - RESERVE * free.gpu_total:
        return Plan("resident", resident, 0, True, merge_bytes)
    fits = checkpoint_bytes <= free.host
    return Plan("streamed", model_bytes + 2 * largest, checkpoint_bytes, fits, merge_bytes)


def speed(kind: Kind, device: str) -> float:
    """Bytes per second that a pass of this kind can move here at best: the median of five copies. Each byte counts
    as read and as written; on its way to the GPU, once."""
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


# --- how a pass gets at tensors ----------------------------------------------------------------------------


class Source(Protocol):
    """Gives base's and experts' tensors on the live model's device."""

    def stream(self, names: Iterable[str], experts: Sequence[str]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """(θ0, [θk]) of each name. What is given is good until the next one is asked for."""


class Mapped:
    """The mapped files themselves."""

    def __init__(self, base: Checkpoint, experts: Mapping[str, Checkpoint]) -> None:
        self._base, self._experts = base, experts

    def stream(self, names: Iterable[str], experts: Sequence[str]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Views of the files."""
        for name in names:
            yield self._base[name], [self._experts[expert][name] for expert in experts]


class Resident:
    """Copies on the GPU, made when a tensor is first asked for."""

    def __init__(self, base: Checkpoint, experts: Mapping[str, Checkpoint], device: torch.device) -> None:
        self._mapped = Mapped(base, experts)
        self._device = device
        self._held: dict[tuple[str, str], Tensor] = {}

    def stream(self, names: Iterable[str], experts: Sequence[str]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The copies."""
        for name in names:
            wanted = [("", name), *((expert, name) for expert in experts)]
            if any(key not in self._held for key in wanted):
                ((base, others),) = self._mapped.stream([name], experts)
                for key, tensor in zip(wanted, (base, *others), strict=True):
                    self._held.setdefault(key, tensor.to(self._device))
            first, *rest = (self._held[key] for key in wanted)
            yield first, rest


class Streamed:
    """Copies tensors to two buffers on the device in turn, so that one is filled while the other is merged from.

    Works on the CPU as well, one after the other.
    """

    def __init__(self, base: Checkpoint, experts: Mapping[str, Checkpoint], device: torch.device) -> None:
        self._mapped = Mapped(base, experts)
        self._device = device
        self._buffers: list[Tensor] = []
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            for checkpoint in (base, *experts.values()):
                _pin(checkpoint)

    def stream(self, names: Iterable[str], experts: Sequence[str]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Each name's tensors in one buffer, while the next name's are copied to the other."""
        waiting: list[Tensor] | None = None
        ready = None
        turn = 0
        # What a buffer held before is merged once its event has passed.
        merged: list[torch.cuda.Event | None] = [None, None]
        for base, others in self._mapped.stream(names, experts):
            filled, copied = self._fill(turn, [base, *others], merged[turn])
            if waiting is not None:
                yield self._hand_over(waiting, ready)
                merged[1 - turn] = self._mark()
            waiting, ready, turn = filled, copied, 1 - turn
        if waiting is not None:
            yield self._hand_over(waiting, ready)

    def _fill(
        self, turn: int, tensors: list[Tensor], free: torch.cuda.Event | None
    ) -> tuple[list[Tensor], torch.cuda.Event | None]:
        """Starts to copy tensors to a buffer, once what it held is merged; its parts, and the event of its end."""
        parts = self._cut(turn, tensors)
        if self._copies is None:
            for part, tensor in zip(parts, tensors, strict=True):
                part.copy_(tensor)
            return parts, None
        with torch.cuda.stream(self._copies):
            if free is not None:
                self._copies.wait_event(free)
            for part, tensor in zip(parts, tensors, strict=True):
                part.copy_(tensor, non_blocking=True)
            return parts, self._copies.record_event()

    def _cut(self, turn: int, tensors: list[Tensor]) -> list[Tensor]:
        """Parts of a buffer, of the tensors' dtypes and shapes."""
        wanted = sum(_aligned(tensor.nbytes) for tensor in tensors)
        if len(self._buffers) < 2 or self._buffers[turn].numel() < wanted:
            if self._copies is not None:
                torch.cuda.synchronize(self._device)  # the old buffer may be in use
            while len(self._buffers) < 2:
                self._buffers.append(torch.empty(0, dtype=torch.uint8, device=self._device))
            self._buffers[turn] = torch.empty(wanted, dtype=torch.uint8, device=self._device)
        parts, start = [], 0
        for tensor in tensors:
            part = self._buffers[turn][start : start + tensor.nbytes]
            parts.append(part.view(tensor.dtype).view(tensor.shape))
            start += _aligned(tensor.nbytes)
        return parts

    def _hand_over(self, parts: list[Tensor], copied: torch.cuda.Event | None) -> tuple[Tensor, list[Tensor]]:
        if copied is not None:
            torch.cuda.current_stream(self._device).wait_event(copied)
        return parts[0], parts[1:]

    def _mark(self) -> torch.cuda.Event | None:
        """An event that passes when all that was started on the device so far is done."""
        return None if self._copies is None else torch.cuda.current_stream(self._device).record_event()


def open_source(
    kind: Literal["auto"] | Kind,
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    names: Sequence[str],
    device: torch.device,
) -> Source:
    """Base's and experts' tensors for passes on a device.

    Args:
        kind: where they lie; `auto` plans it for a live model that is on the device already.
        names: the live model's parameters.
    """
    if kind == "auto":
        sizes = [sum(checkpoint[name].nbytes for checkpoint in (base, *experts.values())) for name in names]
        gpu = device.type == "cuda"
        kind = plan(sum(sizes), 0, max(sizes), gpu=gpu, workers=1, free=room(str(device))).kind
    if kind == "mapped":
        return Mapped(base, experts)
    return (Resident if kind == "resident" else Streamed)(base, experts, device)


def _aligned(count: int) -> int:
    """The next multiple of 256, so that every part begins where a device reads best."""
    return -(-count // 256) * 256


_READ_ONLY = 8  # cudaHostRegisterReadOnly


def _pin(checkpoint: Checkpoint) -> None:
    """Pins a checkpoint's mapped files where they lie. Where CUDA cannot, copies are slower and still right."""
    spans: dict[str, list[int]] = {}
    for name in checkpoint:
        start = checkpoint[name].data_ptr()
        stop = start + checkpoint[name].nbytes
        span = spans.setdefault(str(checkpoint.file(name)), [start, stop])
        span[:] = [min(span[0], start), max(span[1], stop)]
    for file, (start, stop) in spans.items():
        cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        outcome = cuda.cudaHostRegister(start, stop - start, _READ_ONLY)
        if int(outcome) != 0:
            warnings.warn(
                f"{file} cannot be pinned (CUDA error {int(outcome)}): merging will be slower", stacklevel=2
            )
