from __future__ import annotations

from evomerge.merging import placement
from evomerge.merging.placement import Placement, Room

GIB = 1 << 30
ROOMY = Room(gpu_free=80 * GIB, gpu_total=80 * GIB, host=200 * GIB)


def _placed(checkpoints: int, model: int, *, gpu: bool = True, workers: int = 1, free: Room = ROOMY) -> Placement:
    return placement.decide(checkpoints, model, GIB, gpu=gpu, workers=workers, free=free)


def test_without_a_gpu_files_are_mapped_and_shared_by_all_workers() -> None:
    placed = _placed(48 * GIB, 16 * GIB, gpu=False, workers=3)
    assert placed == Placement("mapped", 0, (48 + 3 * 16) * GIB, fits=True, merge_bytes=64 * GIB)
    assert not _placed(48 * GIB, 16 * GIB, gpu=False, workers=3, free=Room(0, 0, 90 * GIB)).fits


def test_what_fits_on_the_gpu_beside_the_live_model_and_a_reserve_lies_there() -> None:
    assert _placed(48 * GIB, 16 * GIB) == Placement("resident", 64 * GIB, 0, fits=True, merge_bytes=64 * GIB)
    # 64 of 80 GiB are the most that the reserve leaves
    assert _placed(48 * GIB, 17 * GIB) == Placement("streamed", 19 * GIB, 48 * GIB, fits=True, merge_bytes=65 * GIB)
    assert not _placed(300 * GIB, 17 * GIB).fits


def test_what_others_hold_of_the_gpu_counts() -> None:
    assert _placed(48 * GIB, 16 * GIB, free=Room(60 * GIB, 80 * GIB, 200 * GIB)).kind == "streamed"


def test_the_host_says_what_it_has_free() -> None:
    assert placement.room("cpu").host > 0
    assert placement.room("cpu").gpu_total == 0


def test_a_copy_has_a_speed() -> None:
    assert placement.speed("mapped", "cpu") > 1e6
