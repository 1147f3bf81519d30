"""An 8-billion-parameter merge on a GPU, everything resident, against the copy bandwidth measured in the same run.

Llama-3-8B's shapes, random weights made on the device. A pass merges every tensor once and waits for the device at
the end; the time is the wall clock's, launches and scalars included. Copies move the same (K+2)·n·bytes: tensor by
tensor from the same models to the same live parameters, and once as one large block; the ceiling is the faster one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from bench_merge_common import METHODS, Bench, Noise, config_of, head, line, millions, seconds, shapes_of, spread
from torch import Tensor

from evomerge.merging import methods
from evomerge.merging.kernels import compiling, passes
from evomerge.merging.kernels.order_statistics import Magnitudes
from evomerge.merging.methods import TensorInputs

WANTED = 0.8  # of the ceiling, at least
_LARGE = 1 << 30  # bytes of the large block
_SAMPLE = 1 << 16  # elements of a tensor that its table is made from
_DEVICE = "cuda"
_COLUMNS = (
    ("model", 9),
    ("method", 9),
    ("experts", 7),
    ("first s", 8),
    ("pass ms", 8),
    ("GB/s", 6),
    ("copy GB/s", 9),
    ("block GB/s", 10),
    ("share", 6),
    ("beyond MiB", 10),
)
Model = dict[str, Tensor]


def _family(shapes: dict[str, tuple[int, ...]], experts: int, seed: int) -> list[Model]:
    """Base and experts, random, on the device."""
    noise = Noise(seed, _DEVICE)
    made = {name: noise.models(shape, experts) for name, shape in shapes.items()}
    return [{name: models[k] for name, models in made.items()} for k in range(experts + 1)]


def _tables(models: list[Model], names: Sequence[str]) -> dict[tuple[str, ...], Magnitudes]:
    """TIES' tables, of a sample: which threshold it is makes a pass no slower."""
    tables = {}
    for tensor, base in models[0].items():
        reference = base.view(-1)[:_SAMPLE].cpu()
        for name, model in zip(names, models[1:], strict=True):
            tables[tensor, name] = Magnitudes.of(reference, [model[tensor].view(-1)[:_SAMPLE].cpu()])
    return tables


def _pass(method_name: str, models: list[Model], live: Model) -> Callable[[int], None]:
    """The merge of all tensors with the number-th set of coefficients."""
    method = methods.load(method_name)
    names = tuple(f"expert{k}" for k in range(1, len(models)))
    compiled = compiling.can_compile(torch.device(_DEVICE))
    tables = _tables(models, names) if method_name == "ties" else {}

    def run(number: int) -> None:
        weight, density = 0.4 + 0.01 * (number % 10), 0.6 - 0.01 * (number % 10)
        for name, target in live.items():
            inputs = TensorInputs(
                name=name,
                experts=names,
                values={"weight": (weight,) * len(names), "density": (density,) * len(names), "lambda": (1.0,)},
                options=method.OPTIONS,
                seed=0,
                table=lambda kind, experts, name=name: tables[name, *experts],
            )
            experts = [model[name] for model in models[1:]]
            scalars = method.scalars(inputs)
            passes.run(method, method.OPTIONS, target, models[0][name], experts, scalars, compiled=compiled)
        torch.cuda.synchronize()

    return run


def _copies(models: list[Model], live: Model, streams: int) -> None:
    for model in models[: streams // 2]:
        for name, target in live.items():
            target.copy_(model[name])
    torch.cuda.synchronize()


def _block_bandwidth(rounds: int) -> float:
    """Bytes read and written in a second by a copy of one large block."""
    block = torch.zeros(_LARGE, dtype=torch.uint8, device=_DEVICE)
    target = torch.empty_like(block)

    def move() -> None:
        target.copy_(block)
        torch.cuda.synchronize()

    move()
    return 2 * _LARGE / statistics.median(seconds(move) for _ in range(rounds))


def _measure(method: str, models: list[Model], live: Model, rounds: int) -> dict[str, Any]:
    merge = _pass(method, models, live)
    resident = torch.cuda.memory_allocated()
    first = seconds(lambda: merge(0))
    torch.cuda.reset_peak_memory_stats()
    streams = 2 * ((len(models) + 2) // 2)  # whole copies alone: rounded up where K is odd
    _copies(models, live, streams)
    merged, copied = [], []
    for number in range(1, 1 + rounds):
        copied.append(seconds(lambda: _copies(models, live, streams)))
        merged.append(seconds(lambda number=number: merge(number)))
    beyond = torch.cuda.max_memory_allocated() - resident
    nbytes = sum(tensor.nbytes for tensor in live.values())
    bandwidth = (len(models) + 1) * nbytes / statistics.median(merged)
    copy_bandwidth = streams * nbytes / statistics.median(copied)
    block_bandwidth = _block_bandwidth(rounds)
    return {
        "parameters": sum(tensor.numel() for tensor in live.values()),
        "method": method,
        "experts": len(models) - 1,
        "first_seconds": first,
        "pass_seconds": statistics.median(merged),
        "pass_quartiles": spread(merged),
        "bytes_per_second": bandwidth,
        "copy_bytes_per_second": copy_bandwidth,
        "block_bytes_per_second": block_bandwidth,
        "share_of_ceiling": bandwidth / max(copy_bandwidth, block_bandwidth),
        "resident_bytes": resident,
        "beyond_bytes": beyond,
        "wanted": WANTED,
    }


def _fits(parameters: int, experts: int) -> bool:
    """Whether base, experts, live model and the blocks have room, with a tenth of the device to spare."""
    return 2 * parameters * (experts + 2) + 2 * _LARGE <= 0.9 * torch.cuda.mem_get_info()[0]


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Measures and prints each number of experts and method."""
    if not torch.cuda.is_available():
        print("\ngpu: no CUDA device here: the GPU figures stay open")
        return
    shapes = shapes_of(config_of(bench.settings.gpu_parameters))
    head(
        f"gpu: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; all resident, bfloat16; "
        f"wanted: at least {WANTED:.0%} of the ceiling",
        _COLUMNS,
    )
    for experts in bench.settings.gpu_experts:
        if not _fits(sum(math.prod(shape) for shape in shapes.values()), experts):
            print(f"{experts} experts do not fit on this device: that figure stays open")
            continue
        models = _family(shapes, experts, bench.settings.seed)
        live = {name: torch.empty_like(tensor) for name, tensor in models[0].items()}
        for method in METHODS:
            row = _measure(method, models, live, bench.settings.rounds)
            rates = [row[f"{kind}bytes_per_second"] / 1e9 for kind in ("", "copy_", "block_")]
            cells = row["first_seconds"], 1e3 * row["pass_seconds"], *rates, row["share_of_ceiling"]
            line(_COLUMNS, millions(row["parameters"]), method, experts, *cells, row["beyond_bytes"] / 2**20)
            yield row
        del models, live
        torch.cuda.empty_cache()
