"""How fast a merge is, how much memory it takes, and how long `evomerge merge` writes, each against its measure.

    python experiments/bench_merge.py [--quick] [--json FILE] [--only SECTION ...] [--mergekit PYTHON|auto]

- pass: `Merger.apply` against a copy of as many bytes, on CPU, for models of 135 M and 1 B parameters;
- mergekit: the same recipes by mergekit's own computation; only with --mergekit;
- memory: the peak beyond the live model and the mapped files;
- writing: the command's whole work against writing the same bytes with safetensors;
- gpu: a resident merge of 8 B parameters against the device's copy bandwidth.

Weights are random, bfloat16, in sharded safetensors that are written to a temporary folder first. What is
compared runs in turn, round by round, with warm files; medians and ratios are printed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="a model of 8 M parameters and few rounds: a minute or two")
    add("--json", type=Path, help="write the figures here")
    add("--only", nargs="+", default=SECTIONS, choices=SECTIONS, help="the sections to run")
    add("--parameters", type=count, nargs="+", default=[135_000_000, 1_000_000_000], help="such as 135M 1B")
    add("--experts", type=int, default=2)
    add("--threads", type=int, nargs="+", default=[1, 2])
    add("--rounds", type=int, default=9)
    add(
        "--eager-rounds",
        type=int,
        default=0,
        help="also time plain eager torch; minutes for large models",
    )
    add("--writing-rounds", type=int, default=3, help="exports after the first one")
    add("--mergekit", metavar="PYTHON", help="an interpreter that has mergekit; auto: make .cache/mergekit")
    add("--mergekit-parameters", type=count, default=50_000_000)
    add("--mergekit-rounds", type=int, default=2)
    add("--gpu-parameters", type=count, default=8_000_000_000)
    add("--gpu-experts", type=int, nargs="+", default=[2, 4])
    add("--scratch", type=Path, help="where the temporary folder goes; the system's place by default")
    add("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.parameters, arguments.mergekit_parameters = [8_000_000], 8_000_000
        arguments.rounds, arguments.writing_rounds, arguments.mergekit_rounds = 5, 0, 1
    return arguments


SECTIONS = ("pass", "mergekit", "memory", "writing", "gpu")


def count(text: str) -> int:
    """A number of parameters: 135_000_000, 135M or 1B."""
    factors = {"M": 10**6, "B": 10**9}
    return int(float(text[:-1]) * factors[text[-1]]) if text[-1] in factors else int(text)


def versions() -> dict[str, str]:
    """What a reader needs to judge the figures."""
    names = ("evomerge", "torch", "transformers", "safetensors")
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def run(arguments: argparse.Namespace, scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of every section that is asked for."""
    import bench_merge_gpu
    import bench_merge_memory
    import bench_merge_mergekit
    import bench_merge_pass
    import bench_merge_writing
    from bench_merge_common import Bench, Family, write_family

    @cache
    def family(parameters: int) -> Family:
        return write_family(scratch / f"family-{parameters}", parameters, arguments.experts, arguments.seed)

    sections: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
        "pass": bench_merge_pass.rows,
        "mergekit": bench_merge_mergekit.rows,
        "memory": bench_merge_memory.rows,
        "writing": bench_merge_writing.rows,
        "gpu": bench_merge_gpu.rows,
    }
    bench = Bench(family, arguments.parameters, arguments.threads, scratch, arguments)
    return {name: list(sections[name](bench)) for name in SECTIONS if name in arguments.only}


def main() -> None:
    arguments = parse()
    about = {"command": " ".join(sys.argv), "seed": arguments.seed, "versions": versions()}
    about |= {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(f"command: {about['command']}")
    print(", ".join(f"{name} {version}" for name, version in versions().items()), end="")
    print(f"; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="bench-merge-", dir=arguments.scratch) as folder:
        # Nothing compiled earlier is found: what a first pass costs is what it costs a new user.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "compiled")
        sections = run(arguments, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, "sections": sections}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
