"""How fast a merge is: our `dare_ties` and `ties` pass, the same in plain eager torch, and a memory copy.

    python experiments/bench_merge.py [--quick] [--json FILE] [--parameters N] [--experts K] [--threads 1 2]

All three are timed in turn, in one run, round by round; medians and ratios are printed. The copy moves as many
bytes as a pass has to: K experts and the base read, the live parameters written, (K+2)·n·bytes. The plain versions
are what one writes first: whole-tensor torch operations, DARE's mask drawn by `torch.bernoulli`, TIES' threshold
found by sorting for every candidate. Weights are random, in bfloat16, cut into tensors of 1 to 16 million elements.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics as median_of
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from evomerge import kernels, plugins, statistics
from evomerge.methods import TensorInputs

DENSITY, WEIGHT, LAMBDA = 0.6, 0.5, 1.0
SHAPES = (1 << 20, 1 << 22, 1 << 24)


def sizes(parameters: int) -> list[int]:
    """Tensor sizes that add up to about `parameters`."""
    found: list[int] = []
    while sum(found) < parameters:
        found.append(min(SHAPES[len(found) % len(SHAPES)], parameters - sum(found)))
    return found


def models(counts: list[int], experts: int, seed: int) -> list[list[torch.Tensor]]:
    """Base and experts: per model, its tensors in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    base = [torch.randn(n, generator=generator) for n in counts]
    near = [
        [(b + 0.01 * torch.randn(b.shape, generator=generator)).bfloat16() for b in base] for _ in range(experts)
    ]
    return [[b.bfloat16() for b in base], *near]


def ours(
    name: str, family: list[list[torch.Tensor]], out: list[torch.Tensor], *, compiled: bool
) -> Callable[[], None]:
    """Our pass over all tensors, its tables made beforehand as a study makes them."""
    method = plugins.load("methods", name)
    names = tuple(f"expert{k}" for k in range(len(family) - 1))
    jobs = []
    for position, base in enumerate(family[0]):
        experts = [model[position] for model in family[1:]]
        tables = {}
        if "magnitude" in method.TABLES:
            for k, expert in zip(names, experts, strict=True):
                array = statistics.magnitudes(base, expert)
                tables[k] = statistics.Statistics("magnitude", {"t": array}, {"t": base.numel()})
        inputs = TensorInputs(
            name=f"t{position}",
            experts=names,
            values={
                "weight": (WEIGHT,) * len(names),
                "density": (DENSITY,) * len(names),
                "lambda": (LAMBDA,),
            },
            options=method.OPTIONS,
            seed=0,
            threshold=lambda k, density, tables=tables: tables[k].threshold("t", density),
        )
        jobs.append((base, experts, inputs))

    def run() -> None:
        for (base, experts, inputs), target in zip(jobs, out, strict=True):
            scalars = method.scalars(inputs)
            kernels.run(method, method.OPTIONS, target, base, experts, scalars, compiled=compiled)

    return run


def plain(name: str, family: list[list[torch.Tensor]], out: list[torch.Tensor]) -> Callable[[], None]:
    """The same computation in whole-tensor eager torch, as one writes it first."""

    def sparse(delta: torch.Tensor) -> torch.Tensor:
        if name == "dare_ties":
            return delta * torch.bernoulli(torch.full_like(delta, DENSITY)) / DENSITY
        keep = int(DENSITY * delta.numel())
        mask = torch.zeros_like(delta)
        mask[delta.abs().argsort(descending=True)[:keep]] = 1
        return delta * mask

    def run() -> None:
        for position, base in enumerate(family[0]):
            reference = base.float()
            deltas = torch.stack([WEIGHT * sparse(model[position].float() - reference) for model in family[1:]])
            sign = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
            agrees = deltas.sign() == sign
            merged = (deltas * agrees).sum(0)
            if name == "ties":
                divisor = (WEIGHT * agrees).sum(0)
                merged = merged / torch.where(divisor == 0, 1.0, divisor)
            out[position].copy_(reference + LAMBDA * merged)

    return run


def copy(family: list[list[torch.Tensor]], out: list[torch.Tensor]) -> Callable[[], None]:
    """Moves as many bytes as a pass: (K+2)·n·bytes are (K+2)/2 copies, each of which reads and writes."""
    streams = len(family) + 1
    spare = [torch.empty_like(tensor) for tensor in out]

    def run() -> None:
        for model in family[: streams // 2]:
            for tensor, target in zip(model, out, strict=True):
                target.copy_(tensor)
        if streams % 2:  # half a copy: half of each tensor
            for tensor, target in zip(family[0], spare, strict=True):
                half = tensor.numel() // 2
                target[:half].copy_(tensor[:half])

    return run


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    """One method at one thread count."""
    torch.set_num_threads(threads)
    counts = sizes(arguments.parameters)
    family = models(counts, arguments.experts, arguments.seed)
    out = [torch.empty_like(tensor) for tensor in family[0]]
    compiled = kernels.can_compile(torch.device("cpu"))
    merge, simple, move = ours(name, family, out, compiled=compiled), plain(name, family, out), copy(family, out)
    first = seconds(merge)  # compiles
    move()
    merged, copied, eager = [], [], []
    for round_number in range(arguments.rounds):
        copied.append(seconds(move))
        merged.append(seconds(merge))
        if round_number < arguments.eager_rounds:
            eager.append(seconds(simple))
    pass_seconds = median_of.median(merged)
    moved = (arguments.experts + 2) * sum(counts) * 2
    return {
        "method": name,
        "threads": threads,
        "parameters": sum(counts),
        "experts": arguments.experts,
        "compiled": compiled,
        "first_seconds": first,
        "pass_seconds": pass_seconds,
        "pass_quartiles": median_of.quantiles(merged, n=4),
        "copy_seconds": median_of.median(copied),
        "eager_seconds": median_of.median(eager),
        "gigabytes_per_second": moved / pass_seconds / 1e9,
        "times_the_copy": pass_seconds / median_of.median(copied),
        "faster_than_eager": median_of.median(eager) / pass_seconds,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="8 M parameters, few rounds: under a minute")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--parameters", type=int, default=135_000_000)
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--eager-rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.parameters, arguments.rounds = min(arguments.parameters, 8_000_000), 5
    return arguments


def main() -> None:
    arguments = parse()
    print(f"command: {' '.join(sys.argv)}")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, seed {arguments.seed}")
    head = ("threads", 7), ("pass s", 8), ("copy s", 8), ("eager s", 8), ("GB/s", 6), ("×copy", 6), ("eager×", 7)
    print(f"{'method':<10} " + " ".join(f"{title:>{width}}" for title, width in head))
    rows = []
    for name in ("dare_ties", "ties"):
        for threads in arguments.threads:
            row = measure(name, arguments, threads)
            rows.append(row)
            print(
                f"{name:<10} {threads:>7} {row['pass_seconds']:>8.4f} {row['copy_seconds']:>8.4f} "
                f"{row['eager_seconds']:>8.3f} {row['gigabytes_per_second']:>6.1f} {row['times_the_copy']:>6.2f} "
                f"{row['faster_than_eager']:>7.1f}",
                flush=True,
            )
    if not rows[0]["compiled"]:
        print("there is no C++ compiler here: our pass ran eager, block by block")
    if arguments.json:
        about = {"torch": torch.__version__, "python": platform.python_version(), "command": sys.argv}
        arguments.json.write_text(json.dumps({**about, "seed": arguments.seed, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
