from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.merging.parents import Mapped, Parents, Resident, Streamed
from evomerge.models.checkpoints import Checkpoint


def _family(folder: Path) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    opened = {name: Checkpoint(folder / "models" / name, name) for name in ("base", "ant", "bee")}
    return opened.pop("base"), opened


@pytest.mark.parametrize("kind", [Mapped, Resident, Streamed])
def test_all_kinds_of_parents_give_the_tensors_of_the_files_in_order(bf16_family: Path, kind: type) -> None:
    base, experts = _family(bf16_family)
    parents: Parents = kind(base, experts) if kind is Mapped else kind(base, experts, torch.device("cpu"))
    for wanted in (["ant", "bee"], ["bee"], []):  # again and again, in other company
        given = parents.stream(list(base), wanted)
        for name, (first, others) in zip(base, given, strict=True):
            assert torch.equal(first, base[name])
            assert first.dtype == base[name].dtype
            assert all(torch.equal(x, experts[e][name]) for x, e in zip(others, wanted, strict=True))


def test_streamed_tensors_outlive_the_copy_of_the_next_ones() -> None:
    tensors = {f"t{k}": torch.full((1 + 1000 * k,), float(k)) for k in range(6)}
    parents = Streamed(_Dict(tensors), {"a": _Dict(tensors)}, torch.device("cpu"))  # type: ignore[arg-type,dict-item]
    for k, (base, (expert,)) in enumerate(parents.stream(list(tensors), ["a"])):
        assert set(base.tolist()) == set(expert.tolist()) == {float(k)}


def test_streaming_takes_two_buffers_and_no_more() -> None:
    tensors = {f"t{k}": torch.zeros(1000 + 100 * (k % 3)) for k in range(9)}
    parents = Streamed(_Dict(tensors), {}, torch.device("cpu"))  # type: ignore[arg-type]
    places = {base.data_ptr() for base, _ in parents.stream(list(tensors), [])}
    places = {base.data_ptr() for base, _ in parents.stream(list(tensors), [])}
    assert len(places) == 2


class _Dict(dict[str, torch.Tensor]):
    """Stands in for a checkpoint."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", [Resident, Streamed])
def test_all_kinds_of_parents_give_the_same_tensors_on_the_gpu(bf16_family: Path, kind: type) -> None:
    base, experts = _family(bf16_family)
    parents: Parents = kind(base, experts, torch.device("cuda"))
    for _ in range(3):
        for name, (first, others) in zip(base, parents.stream(list(base), ["ant", "bee"]), strict=True):
            assert first.is_cuda
            assert torch.equal(first.cpu(), base[name])
            assert torch.equal(others[1].cpu(), experts["bee"][name])
