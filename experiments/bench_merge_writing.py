"""`evomerge merge` against writing the same tensors with safetensors.

The whole work of the command, `export_recipe`, runs in a fresh process, as for a person: it reads and hashes the
parents, merges, writes, and loads what it wrote again to compare. The measure is `safetensors.torch.save_file` of
the same tensors in the same shards to the same disk. Neither waits for the disk (no fsync); what others left to
write is synced before each. Both run in turn. The first round compiles with nothing cached and is told apart.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_merge_common import METHODS, Bench, Family, head, line, millions, seconds
from safetensors.torch import load_file, save_file

from evomerge.recipes import files
from evomerge.results.exporting.folder import export_recipe

WANTED = 1.5  # times the writing with safetensors, at most
PHASES = ("reading", "merging", "writing", "loading")
_COLUMNS = (
    ("model", 9),
    ("method", 9),
    ("round", 7),
    *((f"{phase} s", 10) for phase in PHASES),
    ("whole s", 8),
    ("safetensors s", 13),
    ("whole×", 7),
    ("writing×", 8),
)


def _save(folder: Path, to: Path) -> float:
    """Writes a folder's tensors again with safetensors, from memory, shard by shard; the seconds it took."""
    shards = {file.name: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    shards = {name: {key: tensor.clone() for key, tensor in shard.items()} for name, shard in shards.items()}
    to.mkdir()
    os.sync()

    def save() -> None:
        for name, shard in shards.items():
            save_file(shard, to / name, metadata={"format": "pt"})

    return seconds(save)


def _round(bench: Bench, recipe: Path, cache: Path) -> dict[str, float]:
    """One export in a fresh process, and one writing with safetensors."""
    out, again = bench.scratch / "merged", bench.scratch / "again"
    os.sync()
    command = [sys.executable, __file__, str(recipe), str(out), str(max(bench.threads))]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    phases: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    phases["safetensors"] = _save(out, again)
    shutil.rmtree(out)
    shutil.rmtree(again)
    return phases


def _row(family: Family, method: str, which: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    return {
        "parameters": family.parameters,
        "method": method,
        "round": which,
        "rounds": len(rounds),
        **{f"{key}_seconds": value for key, value in middle.items()},
        "whole_times_safetensors": middle["whole"] / middle["safetensors"],
        "writing_times_safetensors": middle["writing"] / middle["safetensors"],
        "wanted": WANTED,
    }


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Measures and prints each model and method, at the most threads: the first round, then the others' medians."""
    head(
        f"writing: evomerge merge at {max(bench.threads)} threads against safetensors' save_file of the same "
        f"tensors, no fsync in either; wanted: at most {WANTED:g} ×",
        _COLUMNS,
    )
    for parameters in bench.parameters:
        family = bench.family(parameters)
        for method in METHODS:
            recipe = bench.scratch / "recipe.yaml"
            recipe.write_text(files.recipe_to_yaml(family.recipe(method, 0)), encoding="utf-8")
            cache = bench.scratch / f"writing-{family.parameters}-{method}"
            rounds = [_round(bench, recipe, cache) for _ in range(1 + bench.settings.writing_rounds)]
            for which, part in (("first", rounds[:1]), ("later", rounds[1:])):
                if not part:
                    continue
                row = _row(family, method, which, part)
                keys = (*PHASES, "whole", "safetensors")
                cells = [row[f"{key}_seconds"] for key in keys]
                ratios = row["whole_times_safetensors"], row["writing_times_safetensors"]
                line(_COLUMNS, millions(family.parameters), method, which, *cells, *ratios)
                yield row
    print("whole: without the start of Python and its imports.")


def _phase_of(text: str) -> str:
    """The phase that a progress message begins; anything unknown is part of the merge."""
    return next((phase for phase in ("reading", "writing", "loading") if text.startswith(phase)), "merging")


def _child(recipe: Path, out: Path, threads: int) -> None:
    """Exports once and prints the seconds of each phase as JSON."""

    torch.set_num_threads(threads)
    spent = dict.fromkeys(PHASES, 0.0)
    begun = last = time.perf_counter()
    phase = PHASES[0]

    def progress(text: str) -> None:
        nonlocal phase, last
        now = time.perf_counter()
        spent[phase] += now - last
        phase, last = _phase_of(text), now

    export_recipe(recipe, out, progress)
    progress("")
    print(json.dumps({**spent, "whole": last - begun}))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
