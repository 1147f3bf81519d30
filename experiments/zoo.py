"""Whether evomerge is right for every architecture that the installed transformers has a config for.

    python experiments/zoo.py                      # all of them, half an hour on two cores
    python experiments/zoo.py --quick              # the twenty of the test
    python experiments/zoo.py --only qwen3 llava --json zoo.json
    python experiments/zoo.py --build-only DIR     # saves the tiny models to DIR, and checks nothing

Of each a tiny random base and two experts are made, which are merged, exported, loaded and scored; `zoo_checks`
says what has to hold. Each architecture has a process of its own, so that none can end the table. The columns:

    tensors    in the base's file
    result     whole; refused, where evomerge says in one line that it does not take the model; wrong, with the
               letters of the checks that fail; unbuilt, where transformers cannot make or run the model here
    shared     whether prompts that begin alike are forwarded together: yes, no, or no (full) where all logits are
               computed
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import transformers
import zoo_checks
import zoo_models
import zoo_rows
from zoo_models import Architecture
from zoo_rows import Row

QUICK = (
    *("llama", "qwen3", "gemma3_text", "mistral", "phi3", "gpt2", "gpt_neox", "apertus"),
    *("mixtral", "qwen3_moe", "deepseek_v3", "glm4_moe"),
    *("nemotron_h", "mamba2", "rwkv"),
    *("qwen3_5", "qwen2_5_vl", "gemma4", "llava", "idefics3"),
)

_SECONDS = 300  # that one architecture may take
_WIDTHS = (26, 38, 7, 8, 9)

Work = Callable[[Architecture, Path], Row]


def main() -> None:
    """The table, for the arguments of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="model types; all by default")
    parser.add_argument("--quick", action="store_true", help="the architectures of the test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here, too")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--build-only", type=Path, metavar="DIR", help="save the models here, and check nothing")
    arguments = parser.parse_args()
    chosen = _choose(QUICK if arguments.quick else arguments.only)
    folder = arguments.build_only
    work = zoo_rows.build if folder else zoo_checks.check
    rows, start = [], time.perf_counter()
    _print_line(("architecture", "class", "tensors", "result", "shared", "seconds and reason"))
    for row in run(chosen, work, arguments.jobs, folder):
        rows.append(row)
        shared = {None: "-", True: "yes", False: "no (full)" if row.full_forward else "no"}[row.shared]
        reason = "; ".join([*row.problems, *row.notes])
        _print_line((row.name, row.kind, str(row.tensors), row.result, shared, f"{row.seconds:3.0f} {reason}"))
    counts = Counter(row.result for row in rows)
    counted = ", ".join(f"{count} {result}" for result, count in counts.most_common())
    print(f"{len(rows)} architectures in {time.perf_counter() - start:.0f} s: {counted}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _choose(names: Sequence[str]) -> list[Architecture]:
    """The architectures of some names; all where none is given."""
    every = {one.name: one for one in zoo_models.architectures()}
    if unknown := sorted(set(names) - set(every)):
        raise SystemExit(f"--only: transformers {transformers.__version__} has no {', '.join(unknown)}")
    return [every[name] for name in names] if names else list(every.values())


def _print_line(cells: Sequence[str]) -> None:
    *columns, last = cells
    print(*(text.ljust(width) for text, width in zip(columns, _WIDTHS, strict=True)), last, flush=True)


# --- one process for each architecture


def run(chosen: Sequence[Architecture], work: Work, jobs: int, folder: Path | None = None) -> Iterator[Row]:
    """The rows of some architectures, as they are done.

    Args:
        jobs: how many processes run at once.
        folder: where each architecture's folder is made and kept; None makes temporary ones.
    """
    _prepare()
    context = multiprocessing.get_context("fork")  # children need not import torch and transformers again
    waiting = list(chosen)
    running: dict[Connection, tuple[Architecture, BaseProcess, float, Path]] = {}
    with tempfile.TemporaryDirectory(prefix="zoo-") as temporary:
        while waiting or running:
            while waiting and len(running) < jobs:
                one = waiting.pop(0)
                home = (folder or Path(temporary)) / one.name
                home.mkdir(parents=True)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(one, work, home, theirs))
                process.start()
                theirs.close()
                running[ours] = one, process, time.perf_counter(), home
            ready = wait(running, timeout=1.0)
            for connection, (one, process, start, home) in list(running.items()):
                late = time.perf_counter() - start > _SECONDS
                if connection not in ready and not late:
                    continue
                yield _row(one, connection, process, late=late and connection not in ready)
                del running[connection]
                if folder is None:
                    shutil.rmtree(home, ignore_errors=True)


def _prepare() -> None:
    """Imports what children share, and quiets what speaks of progress."""
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        zoo_rows.build(Architecture("llama", "LlamaForCausalLM"), Path(temporary))


def _child(one: Architecture, work: Work, home: Path, connection: Connection) -> None:
    """Works on one architecture in a process of its own, and sends its row; what it prints goes to a file."""
    log = os.open(home / "log.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
    connection.send(work(one, home))


def _row(one: Architecture, connection: Connection, process: BaseProcess, *, late: bool) -> Row:
    """The row that a process has sent, or one that says how it ended."""
    row = Row(one.name, one.kind, result="wrong")
    if late:
        process.kill()
        row.problems.append(f"takes more than {_SECONDS} s")
    else:
        try:
            row = connection.recv()
        except EOFError:
            process.join()
            row.problems.append(f"the process ended with {process.exitcode}")
    process.join()
    connection.close()
    return row


if __name__ == "__main__":
    main()
