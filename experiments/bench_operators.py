"""What operators do to a model, held against the papers' claims on a tiny one.

    python experiments/bench_operators.py context        [--seeds 3] [--json FILE] [--quick]
    python experiments/bench_operators.py context-search [--seeds 3] [--candidates 130] [--json FILE] [--quick]
    python experiments/bench_operators.py demo           [--seeds 1] [--json FILE] [--quick]
    python experiments/bench_operators.py healing        [--seeds 3] [--json FILE] [--quick]
    python experiments/bench_operators.py real           [--seeds 1] [--json FILE] [--quick]

context         a tiny byte-level Llama trained at 64 bytes reads 256: log-loss of the last 32 bytes and pass keys
                found, by method of extension; as it is, and after 40 steps of training at 256.
context-search  CMA-ES over three of YaRN's options, climbed on one part of the text and held out on another.
demo            a search of the demo family with both operators: killed, resumed, certified, exported.
healing         the same kind of model at 128 bytes, two experts and their merge, healed by 40 steps of training:
                by loss, by teacher, by where the answers come from; and whether the best recipes before are the
                best after.
real            SmolLM2-135M (see smollm2/README.md): what context extension costs and spoils, and accuracies of
                merges before and after healing, beside their controls. The seeds are those of the healing.

Medians over seeds, each of which trains a model of its own (but for `real`). A goal that is missed is said to be.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import operators_context
import operators_demo
import operators_healing
import operators_real
import torch
from operators_context import Reading
from operators_real import SKILLS

QUICK_STEPS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(_PARTS))
    parser.add_argument("--quick", action="store_true", help="one seed, hardly trained: does it run at all")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seeds", type=int, help="default: 3; of demo and real 1")
    parser.add_argument("--candidates", type=int, default=130, help="evaluations of a search")
    given = parser.parse_args()
    given.seeds = range(1 if given.quick else given.seeds or (1 if given.what in ("demo", "real") else 3))
    torch.set_num_threads(1)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "cma", "numpy")}
    print("python", " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    print(f"python {platform.python_version()}", *(f"{name} {version}" for name, version in versions.items()))
    print(f"seeds {given.seeds[0]} to {given.seeds[-1]}", flush=True)
    found = _PARTS[given.what](given)
    if given.json:
        given.json.write_text(json.dumps({"versions": versions, "command": sys.argv[1:], **found}, indent=1) + "\n")


def goal(what: str, value: float, *, least: float | None = None, most: float | None = None) -> None:
    """Says whether a figure reaches its goal."""
    bound = f"at least {least}" if most is None else f"at most {most}"
    reached = value >= least if least is not None else value <= (most or 0.0)
    print(f"{'reached' if reached else 'MISSED':8} {what}: {value:.3f}, goal {bound}")


def _trained(given: argparse.Namespace, seed: int) -> Any:
    return operators_context.train(seed, QUICK_STEPS) if given.quick else operators_context.train(seed)


# --- context ---------------------------------------------------------------------------------------------------


def context(given: argparse.Namespace) -> dict[str, Any]:
    """Methods of context extension, before and after fine-tuning."""
    asked = operators_context.exam("holdout")
    before: list[dict[str, Reading]] = []
    after: list[dict[str, Reading]] = []
    seconds = []
    for seed in given.seeds:
        start = time.process_time()
        model = _trained(given, seed)
        before.append(operators_context.untuned(model, asked))
        after.append(operators_context.tuned(model, asked, seed))
        seconds.append(time.process_time() - start)
        print(f"seed {seed}: {seconds[-1]:.0f} CPU-seconds", flush=True)
    raw, tuned = _table("as it is", before), _table(f"after {operators_context.TUNING_STEPS} steps at 256", after)
    goal("tail, none minus ntk", raw["none"].tail - raw["ntk"].tail, least=0.03)
    goal("tail, ntk minus yarn", raw["ntk"].tail - raw["yarn"].tail, least=0.03)
    goal("the same, worst seed", min(row["ntk"].tail - row["yarn"].tail for row in before), least=0.03)
    goal("pass keys, yarn", raw["yarn"].keys, least=0.95)
    goal("pass keys, none", raw["none"].keys, most=0.6)
    goal("pass keys, linear", raw["linear"].keys, least=0.95)
    goal("tail after tuning, none minus yarn", tuned["none"].tail - tuned["yarn"].tail, least=0.0)
    goal("CPU-seconds of a seed", float(np.median(seconds)), most=60.0)
    return {"before": _plain(before), "after": _plain(after), "seconds": seconds}


def context_search(given: argparse.Namespace) -> dict[str, Any]:
    """YaRN's options searched, against YaRN as it comes."""
    asked = operators_context.exam("holdout")
    readings, options, seconds = [], [], []
    for seed in given.seeds:
        model = _trained(given, seed)
        start = time.process_time()
        options.append(operators_context.searched(model, seed, 12 if given.quick else given.candidates))
        seconds.append(time.process_time() - start)
        readings.append(operators_context.compared(model, asked, options[-1]))
        chosen = ", ".join(f"{name} {value:.3g}" for name, value in options[-1].items())
        print(f"seed {seed}: {chosen}; {seconds[-1]:.0f} CPU-seconds", flush=True)
    table = _table("held out", readings)
    for default in ("yarn", "yarn, not truncated"):
        goal(f"tail, {default} minus found", table[default].tail - table["found"].tail, least=0.02)
        goal(f"inside the window, {default} minus found", table[default].window - table["found"].window, least=0.0)
    goal("pass keys, found minus yarn", table["found"].keys - table["yarn"].keys, least=0.0)
    return {"readings": _plain(readings), "options": options, "seconds": seconds}


def _table(title: str, rows: Sequence[Mapping[str, Reading]]) -> dict[str, Reading]:
    """Prints and gives the medians over seeds, with the range behind."""
    print(f"\n{title:24}{'tail at 256':>24}{'same, window of 64':>24}{'pass keys at 256':>24}")
    medians = {}
    for name in rows[0]:
        cells = {key: [getattr(row[name], key) for row in rows] for key in ("tail", "window", "keys")}
        medians[name] = Reading(**{key: float(np.median(values)) for key, values in cells.items()})
        print(f"{name:24}" + "".join(f"{_spread(values):>24}" for values in cells.values()), flush=True)
    return medians


# --- healing ---------------------------------------------------------------------------------------------------


def healing(given: argparse.Namespace) -> dict[str, Any]:
    """The merge of two experts, healed."""
    readings: list[dict[str, operators_healing.Reading]] = []
    ranks = operators_healing.Ranks()
    seconds = []
    for seed in given.seeds:
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            shorter = {"steps": QUICK_STEPS, "expert_steps": QUICK_STEPS // 2} if given.quick else {}
            family = operators_healing.family(seed, Path(folder), **shorter)
            readings.append(operators_healing.compared(family, 4 if given.quick else operators_healing.STEPS))
            if seed == given.seeds[0]:
                ranks = operators_healing.ranked(family, 4 if given.quick else operators_healing.RECIPES)
        seconds.append(time.process_time() - start)
        print(f"seed {seed}: {seconds[-1]:.0f} CPU-seconds", flush=True)
    _healing_table(readings)
    _healing_goals(readings)
    print(f"\n{len(ranks.before)} random recipes, seed {given.seeds[0]}: before {_spread(ranks.before)}", end="")
    print(f", after {_spread(ranks.after)}")
    goal("Spearman's rank correlation, before and after", ranks.spearman, least=0.7)
    for share in (0.125, 0.25, 0.5):
        goal(f"regret of the best {share:.1%}, of median to best", ranks.regret(share), most=0.1)
    plain = [{name: asdict(reading) for name, reading in row.items()} for row in readings]
    return {"readings": plain, "ranks": asdict(ranks), "seconds": seconds}


_COLUMNS = ("mean", *operators_healing.DOMAINS, "step")


def _healing_table(rows: Sequence[Mapping[str, operators_healing.Reading]]) -> None:
    titles = ("mean of both", *operators_healing.DOMAINS, "CPU ms a step")
    print(f"\n{'held-out nats per byte':26}" + "".join(f"{title:>22}" for title in titles))
    for name in rows[0]:
        cells = [[getattr(row[name], column) for row in rows] for column in _COLUMNS]
        texts = [_spread(cell) for cell in cells[:-1]] + [f"{np.median(cells[-1]):.0f}"]
        print(f"{name:26}" + "".join(f"{text:>22}" for text in texts))


def _healing_goals(rows: Sequence[Mapping[str, operators_healing.Reading]]) -> None:
    def gap(one: str, other: str, column: str = "mean") -> list[float]:
        return [getattr(row[one], column) - getattr(row[other], column) for row in rows]

    print()
    for suffix in ("", ", lora"):
        kl, hard = f"forward KL{suffix}", f"hard labels{suffix}"
        goal(f"merge minus {kl}, top 8", float(np.median(gap("merge", f"{kl}, top 8"))), least=0.03)
        goal(f"{hard} minus {kl}, top 8, worst seed", min(gap(hard, f"{kl}, top 8")), least=0.0)
        goal(
            f"third domain, {kl}, top 8 minus merge",
            float(np.median(gap(f"{kl}, top 8", "merge", "names"))),
            most=0.05,
        )
        goal(f"{kl}, top 8 minus live, worst seed", max(map(abs, gap(f"{kl}, top 8", f"{kl}, live"))), most=0.005)
        goal(
            f"ms a step, {kl}, live minus top 8",
            float(np.median(gap(f"{kl}, live", f"{kl}, top 8", "step"))),
            least=0.0,
        )
    for control in ("prose teaches both", "code teaches both"):
        goal(f"{control} minus teacher by domain, worst seed", min(gap(control, "forward KL, live")), least=0.0)
    goal(
        "best parent, healed minus merge, healed, worst seed",
        min(gap("best parent, healed", "forward KL, live")),
        least=0.0,
    )


# --- a real model ----------------------------------------------------------------------------------------------


def real(given: argparse.Namespace) -> dict[str, Any]:
    """SmolLM2-135M."""
    found = [_healed(seed, given.quick) for seed in given.seeds]
    print()
    extended = operators_real.extended(given.quick)
    perplexity = {name: float(np.exp(one.window)) for name, one in extended.items()}
    print(f"\n{'x4':10}{'ms':>10}{'ppl of 512':>14}{'tail of 4,096':>16}")
    for name, one in extended.items():
        print(f"{name:10}{one.milliseconds:>10.1f}{perplexity[name]:>14.2f}{one.tail:>16.3f}")
    slowest = max(one.milliseconds for one in extended.values())
    goal("ms of apply and undo, the slowest method", slowest, most=50.0)
    goal("perplexity inside the window, yarn over none", perplexity["yarn"] / perplexity["none"], most=1.08)
    return {"extended": {name: asdict(one) for name, one in extended.items()}, "healing": found}


def _healed(seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """Accuracies of merges before and after healing, and what of the differences is more than noise."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        healing = operators_real.prepare(Path(folder), "holdout", 20 if quick else 200, seed)
        print(f"\nseed {seed}; {healing.dropped} texts left out by the guard against overlap")
        print(f"{'hold-out accuracy':28}" + "".join(f"{name:>12}" for name in (*SKILLS, "mean", "training s")))
        rows = operators_real.compared(healing, 2 if quick else operators_real.STEPS)
        control = next(
            name for name in rows if name.endswith(", soft") and name.split(",")[0] not in healing.merges
        )
        for name in healing.merges:
            for other in (name, f"{name}, hard", control.split(",")[0], control):
                pair = operators_real.difference(healing, rows[f"{name}, soft"], rows[other])
                interval = f"{pair.gain:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}] p {pair.p:.3f}"
                print(f"{name}, soft minus {other:20} {interval}")
        print(f"{time.process_time() - start:.0f} CPU-seconds", flush=True)
    return {name: {**row.accuracy, "mean": row.mean, "seconds": row.training} for name, row in rows.items()}


def _spread(values: Sequence[float]) -> str:
    return f"{np.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def _plain(rows: Sequence[Mapping[str, Reading]]) -> list[dict[str, dict[str, float]]]:
    return [{name: asdict(reading) for name, reading in row.items()} for row in rows]


_PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "context": context,
    "context-search": context_search,
    "demo": lambda given: {"runs": [operators_demo.run(quick=given.quick, seed=seed) for seed in given.seeds]},
    "healing": healing,
    "real": real,
}

if __name__ == "__main__":
    main()
