"""How fast a live model is scored: evomerge's Scorer against stock `lm_eval.simple_evaluate` with HFLM.

    python experiments/bench_scoring.py [--quick] [--json FILE] [--model tiny|smollm2|PATH] [--only NAME ...]

Each workload is a local lm-eval task made from a seed. A candidate: the model's weights are overwritten in place,
then lm-eval scores it, then the Scorer; same process, documents, dtype and threads; medians of several candidates.
HFLM, TaskManager and Scorer are made once and not counted; neither are first calls. lm-eval runs at the fastest of
several batch sizes. The log-likelihoods of both are compared on every candidate: if any differ, the exit code is 1.

    stock      seconds of a call of simple_evaluate, without its description of the machine (told apart)
    HFLM       those of them in HFLM: tokenizing, forwarding, log-probabilities; not loading and prompting the task
    ours       seconds of a call of Scorer.score
    outside    share of ours that is not in the model's forward passes and the output embedding
    tree       tokens forwarded against the distinct prefixes of all rows and prompts; padding comes on top
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_scoring_tasks import WORKLOADS, Workload, write_task

BATCHES = {"quick": (4, 16, 64), "large": (1, 4, 16, 64), "tiny": (1, 4, 16, 64, 256)}
OUTSIDE = {True: 0.05, False: 0.25}  # at most, of large models and of the tiny one
PADDING = 0.10
_COLUMNS = (
    ("workload", 20),
    ("docs", 5),
    ("batch", 5),
    ("stock s", 8),
    ("HFLM s", 8),
    ("ours s", 8),
    ("stock×", 7),
    ("HFLM×", 7),
    ("wanted", 6),
    ("outside", 7),
    ("tree×", 6),
    ("padding", 7),
    ("stock MiB", 9),
    ("ours MiB", 8),
    ("difference", 10),
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = [workload.name for workload in WORKLOADS]
    add("--quick", action="store_true", help="the tiny model, few documents, no memory: less than a minute")
    add("--json", type=Path, help="write the figures here")
    add("--model", default="tiny", help="tiny, smollm2, or the folder of a model")
    add("--threads", type=int, default=1)
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--only", nargs="+", default=names, choices=names, help="the workloads to run")
    add("--documents", type=int, help="of each workload; by default more for the tiny model than for others")
    add("--repeats", type=int, help="candidates; by default 7 for the tiny model, 3 for others")
    add("--no-memory", action="store_true", help="leave peak memory out")
    add("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.documents, arguments.repeats = "tiny", arguments.documents or 16, 2
        arguments.no_memory = True
    return arguments


def versions() -> dict[str, str]:
    """The versions that a reader needs to judge the figures."""
    names = ("evomerge", "torch", "transformers", "lm_eval")
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def available() -> int:
    """Bytes of memory that are free or can be freed; a great many where the system does not say."""
    file = Path("/proc/meminfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 1 << 40)


class Bench:
    """Measures one model on all workloads, which are tasks in a temporary folder."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        from bench_scoring_models import Candidates, load
        from bench_scoring_sides import Stock

        self.arguments, self.folder = arguments, folder
        self.subject = load(arguments.model, arguments.dtype, arguments.seed)
        self.candidates = Candidates(self.subject.model, arguments.seed)
        self.batches = BATCHES["quick" if arguments.quick else "large" if self.subject.large else "tiny"]
        self.repeats = arguments.repeats or (3 if self.subject.large else 7)
        self.counts = {}
        for workload in WORKLOADS:
            self.counts[workload.name] = arguments.documents or workload.documents[self.subject.large]
            write_task(workload, self.subject.language, folder, self.counts[workload.name], arguments.seed)
        self.stock = Stock(self.subject, folder)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Measures and prints each workload that is asked for."""
        from bench_merge_common import head

        head("scoring: a second and later candidate, stock lm-eval against evomerge", _COLUMNS)
        for workload in WORKLOADS:
            row = self._measure(workload) if workload.name in self.arguments.only else None
            if row is not None:
                row |= self._memory(workload, row)
                _print(row)
                yield row

    def _measure(self, workload: Workload) -> dict[str, Any] | None:
        import bench_scoring_check as check
        from bench_merge_common import spread
        from bench_scoring_sides import Ours

        from evomerge.errors import ConfigError

        try:
            ours = Ours(self.subject, self.folder, workload.name)
        except ConfigError as error:
            print(f"{workload.name:>20} left out: the Scorer refuses it: {error}", flush=True)
            return None
        first = ours.run()
        if any(first.report.cut_prompts.values()):
            raise SystemExit(f"{workload.name}: the model's maximum length is too small for its prompts")
        forwarded = check.tokens(ours, first)
        batch, tried = self._best_batch(workload, forwarded["longest_row"])
        stock_runs, our_runs, checks = [], [], []
        for _ in range(self.repeats):
            self.candidates.next()
            stock_runs.append(self.stock.run(workload.name, batch))
            our_runs.append(ours.run())
            results = (stock_runs[-1], our_runs[-1], ours.answers(workload.name), self.arguments.dtype)
            checks.append(check.compare(workload, self.folder, *results))
        seconds = statistics.median(run.seconds for run in our_runs)
        stock_seconds = statistics.median(run.seconds for run in stock_runs)
        inside = statistics.median(run.inside for run in stock_runs)
        outside = statistics.median(1 - run.forward / run.seconds for run in our_runs)
        return {
            "workload": workload.name,
            "documents": self.counts[workload.name],
            "batch": batch,
            "batches_tried": tried,
            "stock_seconds": stock_seconds,
            "stock_quartiles": spread([run.seconds for run in stock_runs]),
            "hflm_seconds": inside,
            "our_seconds": seconds,
            "our_quartiles": spread([run.seconds for run in our_runs]),
            "our_first_seconds": first.seconds,
            "our_build_seconds": ours.build_seconds,
            "times_faster": stock_seconds / seconds,
            "times_faster_than_hflm": inside / seconds,
            "wanted": workload.wanted,
            "outside_share": outside,
            "outside_wanted": OUTSIDE[self.subject.large],
            **forwarded,
            "largest_difference": max(one.difference for one in checks),
            "faults": sorted({fault for one in checks for fault in one.faults}),
        }

    def _best_batch(self, workload: Workload, longest: int) -> tuple[int, dict[int, float]]:
        """HFLM's fastest batch size on some documents, and its seconds at each size that fits into memory."""
        config = self.subject.model.config
        limit = self._limit(workload)
        tried: dict[int, float] = {}
        for batch in self.batches:
            # Logits, their log-softmax, and what a forward pass needs besides.
            needed = 3 * batch * longest * config.vocab_size * self.subject.model.dtype.itemsize
            if workload.kind != "generate" and needed > available() / 2:
                break
            self.stock.run(workload.name, batch, 1)
            tried[batch] = self.stock.run(workload.name, batch, limit).inside
        return min(tried, key=lambda batch: tried[batch]), tried

    def _limit(self, workload: Workload) -> int:
        """How many documents fill the largest batch that is tried."""
        rows = workload.choices if workload.kind == "choice" else 1
        return min(-(-self.batches[-1] // rows), self.counts[workload.name])

    def _memory(self, workload: Workload, row: dict[str, Any]) -> dict[str, int]:
        """Both sides' peaks in bytes; {} where they are not wanted or cannot be measured."""
        from bench_scoring_memory import can_measure, peak

        if self.arguments.no_memory or not can_measure():
            return {}
        keys = ("model", "dtype", "seed", "threads")
        request = {key: getattr(self.arguments, key) for key in keys} | {"folder": str(self.folder)}
        request |= {"task": workload.name, "batch": row["batch"], "limit": self._limit(workload)}
        return {f"{side}_peak_bytes": peak({**request, "side": side}) for side in ("stock", "our")}


def _print(row: dict[str, Any]) -> None:
    from bench_merge_common import line

    peaks = [row[key] / 2**20 if key in row else "-" for key in ("stock_peak_bytes", "our_peak_bytes")]
    line(
        _COLUMNS,
        *(row[key] for key in ("workload", "documents", "batch", "stock_seconds", "hflm_seconds", "our_seconds")),
        *(row[key] for key in ("times_faster", "times_faster_than_hflm")),
        row["wanted"] or "-",
        f"{row['outside_share']:.1%}",
        row["tokens"] / row["tree_tokens"],
        f"{row['padding'] / row['tokens']:.1%}",
        *peaks,
        f"{row['largest_difference']:.1e}",
    )
    for fault in row["faults"]:
        print(f"{'':>20} WRONG: {fault}", flush=True)


def misses(row: dict[str, Any]) -> Iterator[str]:
    """The aims that a workload misses. Generating loops outside the model, so its share has no aim."""
    if row["wanted"] and row["times_faster"] < row["wanted"]:
        yield f"{row['times_faster']:.1f} times as fast, not {row['wanted']:g}"
    generates = row["workload"].startswith("generate")
    if not generates and row["outside_share"] > row["outside_wanted"]:
        yield f"{row['outside_share']:.0%} outside the forward passes, not {row['outside_wanted']:.0%}"
    more = (row["tokens"] + row["padding"]) / row["tree_tokens"] - 1
    if not generates and more > PADDING:
        yield f"{more:.0%} more tokens than the tree's, padding included, not {PADDING:.0%}"
    if row.get("our_peak_bytes", 0) > row.get("stock_peak_bytes", 0):
        yield f"a peak of {row['our_peak_bytes'] >> 20} MiB, lm-eval's is {row['stock_peak_bytes'] >> 20} MiB"


def main() -> int:
    arguments = parse()
    about = {"command": " ".join(sys.argv), "seed": arguments.seed, "versions": versions()}
    about |= {"cores": os.cpu_count(), "load": os.getloadavg()[0], "threads": arguments.threads}
    print(f"command: {about['command']}")
    print(", ".join(f"{name} {version}" for name, version in versions().items()), end="")
    print(f"; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.threads} threads", end="")
    print(f"; seed {arguments.seed}; {arguments.dtype}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-scoring-") as folder:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{folder}/cache"}
        import torch
        from bench_scoring_sides import env_seconds
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(arguments.threads)
        about["env_seconds"] = env_seconds()
        tasks = Path(folder) / "tasks"
        tasks.mkdir()
        bench = Bench(arguments, tasks)
        about |= {"model": bench.subject.told, "dtype": arguments.dtype, "repeats": bench.repeats}
        print(f"model: {about['model']}; medians of {bench.repeats} candidates")
        print(f"lm-eval's description of the machine, in no figure below: {about['env_seconds']:.1f} s a call")
        rows = list(bench.rows())
    missed = {row["workload"]: list(misses(row)) for row in rows}
    for name, texts in missed.items():
        if texts:
            print(f"{name}: {'; '.join(texts)}")
    if arguments.json:
        content = {**about, "rows": rows, "missed": missed}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
