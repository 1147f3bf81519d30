from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.merging import placement
from evomerge.merging.placement import Mapped, Plan, Resident, Room, Source, Streamed
from evomerge.models.checkpoints import Checkpoint

GIB = 1 << 30
ROOMY = Room(gpu_free=80 * GIB, gpu_total=80 * GIB, host=200 * GIB)


def _plan(checkpoints: int, model: int, *, gpu: bool = True, workers: int = 1, free: Room = ROOMY) -> Plan:
    return placement.plan(checkpoints, model, GIB, gpu=gpu, workers=workers, free=free)


def test_without_a_gpu_files_are_mapped_and_shared_by_all_workers() -> None:
    found = _plan(48 * GIB, 16 * GIB, gpu=False, workers=3)
    assert found == Plan("mapped", 0, (48 + 3 * 16) * GIB, fits=True, merge_bytes=64 * GIB)
    assert not _plan(48 * GIB, 16 * GIB, gpu=False, workers=3, free=Room(0, 0, 90 * GIB)).fits


def test_what_fits_on_the_gpu_beside_the_live_model_and_a_reserve_lies_there() -> None:
    assert _plan(48 * GIB, 16 * GIB) == Plan("resident", 64 * GIB, 0, fits=True, merge_bytes=64 * GIB)
    # 64 of 80 GiB are the most that the reserve leaves
    assert _plan(48 * GIB, 17 * GIB) == Plan("streamed", 19 * GIB, 48 * GIB, fits=True, merge_bytes=65 * GIB)
    assert not _plan(300 * GIB, 17 * GIB).fits


def test_what_others_hold_of_the_gpu_counts() -> None:
    assert _plan(48 * GIB, 16 * GIB, free=Room(60 * GIB, 80 * GIB, 200 * GIB)).kind == "streamed"


def test_the_host_says_what_it_has_free() -> None:
    assert placement.room("cpu").host > 0
    assert placement.room("cpu").gpu_total == 0


def test_a_copy_has_a_speed() -> None:
    assert placement.speed("mapped", "cpu") > 1e6


def _family(folder: Path) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    opened = {name: Checkpoint(folder / "models" / name, name) for name in ("base", "ant", "bee")}
    return opened.pop("base"), opened


@pytest.mark.parametrize("kind", [Mapped, Resident, Streamed])
def test_every_source_gives_the_tensors_of_the_files_in_order(bf16_family: Path, kind: type) -> None:
    base, experts = _family(bf16_family)
    source: Source = kind(base, experts) if kind is Mapped else kind(base, experts, torch.device("cpu"))
    for wanted in (["ant", "bee"], ["bee"], []):  # again and again, in other company
        given = source.stream(list(base), wanted)
        for name, (first, others) in zip(base, given, strict=True):
            assert torch.equal(first, base[name])
            assert first.dtype == base[name].dtype
            assert all(torch.equal(x, experts[e][name]) for x, e in zip(others, wanted, strict=True))


def test_streamed_tensors_outlive_the_copy_of_the_next_ones() -> None:
    tensors = {f"t{k}": torch.full((1 + 1000 * k,), float(k)) for k in range(6)}
    source = Streamed(_Dict(tensors), {"a": _Dict(tensors)}, torch.device("cpu"))  # type: ignore[arg-type,dict-item]
    for k, (base, (expert,)) in enumerate(source.stream(list(tensors), ["a"])):
        assert set(base.tolist()) == set(expert.tolist()) == {float(k)}


def test_streaming_takes_two_buffers_and_no_more() -> None:
    tensors = {f"t{k}": torch.zeros(1000 + 100 * (k % 3)) for k in range(9)}
    source = Streamed(_Dict(tensors), {}, torch.device("cpu"))  # type: ignore[arg-type]
    places = {base.data_ptr() for base, _ in source.stream(list(tensors), [])}
    places = {base.data_ptr() for base, _ in source.stream(list(tensors), [])}
    assert len(places) == 2


class _Dict(dict[str, torch.Tensor]):
    """Stands in for a checkpoint."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", [Resident, Streamed])
def test_every_source_gives_the_same_tensors_on_the_gpu(bf16_family: Path, kind: type) -> None:
    base, experts = _family(bf16_family)
    source: Source = kind(base, experts, torch.device("cuda"))
    for _ in range(3):
        for name, (first, others) in zip(base, source.stream(list(base), ["ant", "bee"]), strict=True):
            assert first.is_cuda
            assert torch.equal(first.cpu(), base[name])
            assert torch.equal(others[1].cpu(), experts["bee"][name])
