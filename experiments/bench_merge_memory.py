"""Memory on CPU beyond the live model and the mapped files, of one `Merger` that applies several recipes.

A fresh process makes the live model, fills it, builds the method's tables and applies recipes. This one reads the
other's RssAnon and RssShmem (/proc/PID/status) about every millisecond, so that no lock of the measured process
hides a peak; mapped files count as RssFile and stay out. Beyond = the peak of a phase, less what there was after
the imports, less the bytes of the live model. What compiler processes take while they run is told apart: it is an
upper bound, as forked ones share pages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_merge_common import METHODS, Bench, Family, head, line, millions

SHARE, SPARE = 0.05, 256 << 20  # the bound: a share of the model, and bytes
PHASES = ("tables", "first", "applies")
_APPLIES = 4
_COLUMNS = (
    ("model", 9),
    ("method", 9),
    ("threads", 7),
    ("tables MiB", 10),
    ("first MiB", 9),
    ("applies MiB", 11),
    ("compilers MiB", 13),
    ("bound MiB", 9),
    ("within", 6),
)


def anonymous(pid: int) -> int:
    """Bytes that a process holds in memory and that come from no file; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    fields = (part.split() for part in status.splitlines())
    return sum(int(words[1]) << 10 for words in fields if words[0] in ("RssAnon:", "RssShmem:"))


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    processes: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in file.read_text().split()]
        except OSError:
            continue
        processes += children
        for child in children:
            processes += descendants(child)
    return processes


class Watch(threading.Thread):
    """Keeps the peak of a process's memory in each phase."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.phase, self.over = pid, "imports", False
        self.peaks: dict[str, int] = {}
        self.compilers = 0

    def run(self) -> None:
        samples = 0
        while not self.over:
            phase = self.phase
            self.peaks[phase] = max(self.peaks.get(phase, 0), anonymous(self.pid))
            if samples % 32 == 0:
                self.compilers = max(self.compilers, sum(anonymous(child) for child in descendants(self.pid)))
            samples += 1
            time.sleep(0.001)


def _measure(family: Family, method: str, threads: int, cache: Path) -> dict[str, Any]:
    request = {"parameters": family.parameters, "method": method, "threads": threads, "cache": str(cache)}
    request |= {"folder": str(family.folder), "experts": family.experts, "sha256": family.sha256}
    command = [sys.executable, __file__, json.dumps(request)]
    # With nothing compiled earlier, so that compiling is in the figures.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{cache}-compiled"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=environment, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it has imported all it needs
        baseline = anonymous(process.pid)
        watch = Watch(process.pid)
        watch.start()
        for phase in ("model", *PHASES):
            watch.phase = phase
            process.stdin.write(phase + "\n")
            process.stdin.flush()
            if not process.stdout.readline():
                raise SystemExit("the measured process ended; its message is above")
        watch.over = True
        watch.join()
        process.stdin.close()
    beyond = {phase: watch.peaks[phase] - baseline - family.nbytes for phase in PHASES}
    bound = SHARE * family.nbytes + SPARE
    return {
        "parameters": family.parameters,
        "method": method,
        "threads": threads,
        "imports_bytes": baseline,
        "model_bytes": family.nbytes,
        "beyond_bytes": beyond,
        "compiler_bytes": watch.compilers,
        "bound_bytes": bound,
        "within": max(beyond.values()) <= bound,
    }


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Measures and prints each model and method, at the most threads."""
    head(
        "memory: peak anonymous bytes beyond the live model, by phase; "
        f"wanted: at most {SHARE:.0%} of the model + {SPARE >> 20} MiB",
        _COLUMNS,
    )
    threads = max(bench.threads)
    for parameters in bench.parameters:
        family = bench.family(parameters)
        for method in METHODS:
            cache = bench.scratch / f"memory-{family.parameters}-{method}"
            row = _measure(family, method, threads, cache)
            sizes = [*row["beyond_bytes"].values(), row["compiler_bytes"], row["bound_bytes"]]
            within = "yes" if row["within"] else "no"
            line(_COLUMNS, millions(family.parameters), method, threads, *(size / 2**20 for size in sizes), within)
            yield row


def _child(request: dict[str, Any]) -> None:
    """The measured process: does a phase whenever a line says so."""
    import torch
    from bench_merge_common import config_of, live_model
    from bench_merge_pass import compiling, tables

    from evomerge.merging.merger import Merger
    from evomerge.models.live_weights import live_weights

    def step() -> None:
        print("done", flush=True)
        sys.stdin.readline()

    torch.set_num_threads(request["threads"])
    family = Family(
        Path(request["folder"]),
        config_of(request["parameters"]),
        tuple(request["experts"]),
        request["sha256"],
        hash_seconds=0.0,
    )
    cache = Path(request["cache"])
    step()
    live = live_model(family.config)
    step()
    tables(family, request["method"], cache)
    step()
    merger = Merger(live_weights(live), *family.open(), cache, compiled=compiling())
    merger.apply(family.recipe(request["method"], 0))
    step()
    for number in range(1, 1 + _APPLIES):
        merger.apply(family.recipe(request["method"], number))
    step()


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
