"""How a pass gets at the parents' tensors: mapped, resident or streamed, as `merging.placement` has it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from evomerge.merging.placement import Kind, decide, room
from evomerge.models.checkpoints import Checkpoint


class Parents(Protocol):
    """Gives the tensors of base and experts on the live model's device."""

    def stream(self, names: Iterable[str], experts: Sequence[str]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """(θ0, [θk]) of each name, [θk] in the order of `experts`. A pair is good until the next one is asked
        for."""


class Mapped:
    """Parents that a pass reads from the memory-mapped files themselves."""

    def __init__(self, base: Checkpoint, experts: Mapping[str, Checkpoint]) -> None:
        self._base, self._experts = base, experts

    def stream(self, names: Iterable[str], experts: Sequence[str]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """(θ0, [θk]) of each name, views of the files."""
        for name in names:
            yield self._base[name], [self._experts[expert][name] for expert in experts]


class Resident:
    """Parents that lie on the device; a tensor is copied there when it is first asked for."""

    def __init__(self, base: Checkpoint, experts: Mapping[str, Checkpoint], device: torch.device) -> None:
        self._mapped = Mapped(base, experts)
        self._device = device
        self._held: dict[tuple[str, str], Tensor] = {}

    def stream(self, names: Iterable[str], experts: Sequence[str]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """(θ0, [θk]) of each name, the copies on the device."""
        for name in names:
            wanted = [("", name), *((expert, name) for expert in experts)]
            if any(key not in self._held for key in wanted):
                ((base, others),) = self._mapped.stream([name], experts)
                for key, tensor in zip(wanted, (base, *others), strict=True):
                    self._held.setdefault(key, tensor.to(self._device))
            first, *rest = (self._held[key] for key in wanted)
            yield first, rest


class Streamed:
    """Parents whose tensors are copied to two buffers on the device in turn: one is filled while the other is
    merged from. On the CPU, which tests use, copies and merges take turns.
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
        """(θ0, [θk]) of each name, in one buffer, while the next name's are copied to the other."""
        waiting: list[Tensor] | None = None
        ready = None
        turn = 0
        # A buffer's tensors are merged once its event has passed.
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
        """Starts to copy tensors to a buffer once the tensors in it are merged.

        Returns: the tensors in the buffer, and the event that passes when the copy is done.
        """
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
        """Parts of a buffer in the dtypes and shapes of these tensors; the buffer grows if it is too small."""
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
        """(θ0, [θk]); what the current stream does next waits for their copy."""
        if copied is not None:
            torch.cuda.current_stream(self._device).wait_event(copied)
        return parts[0], parts[1:]

    def _mark(self) -> torch.cuda.Event | None:
        """An event that passes when all work started on the device so far is done; None on the CPU."""
        return None if self._copies is None else torch.cuda.current_stream(self._device).record_event()


def open_parents(
    kind: Literal["auto"] | Kind,
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    names: Sequence[str],
    device: torch.device,
) -> Parents:
    """The parents for passes on a device.

    Args:
        kind: where the parents lie; `auto` decides it for a live model that is on the device already.
        names: the live model's parameters.
    """
    if kind == "auto":
        sizes = [sum(checkpoint[name].nbytes for checkpoint in (base, *experts.values())) for name in names]
        gpu = device.type == "cuda"
        kind = decide(sum(sizes), 0, max(sizes), gpu=gpu, workers=1, free=room(str(device))).kind
    if kind == "mapped":
        return Mapped(base, experts)
    return (Resident if kind == "resident" else Streamed)(base, experts, device)


def _aligned(count: int) -> int:
    """The next multiple of 256, so that every part begins where a device reads best."""
    return -(-count // 256) * 256


_READ_ONLY = 8  # cudaHostRegisterReadOnly


def _pin(checkpoint: Checkpoint) -> None:
    """Pins a checkpoint's mapped files where they lie. Where CUDA cannot pin them, copies are right but slower."""
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
