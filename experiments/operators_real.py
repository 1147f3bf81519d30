"""SmolLM2-135M: what context extension costs and spoils inside its window, and what healing makes of merges.

The models and documents are those of `smollm2/prepare.py`; the searched merge is the one that LOG.md's first entry
exports to `.cache/smollm2/merged`. Everything is in bfloat16, logits in float32.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn import functional as F

from evomerge.models.loading import load_model, load_tokenizer, quiet
from evomerge.models.survey import Survey
from evomerge.operators import Context, context_extension
from evomerge.operators.training import overlap
from evomerge.recipes.recipe import COMMON_KEYS, OperatorStep, Recipe, parent_recipe
from evomerge.results import certificate
from evomerge.results.exporting import recipe_files
from evomerge.scoring.documents import texts
from evomerge.scoring.fitness import Fitness
from evomerge.scoring.tasks import document_texts
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.candidates.workbench import Workbench

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "smollm2"
SKILLS = ("arith", "cefr", "syllables")
FACTOR = 4.0
METHODS = ("none", "yarn", "ntk", "linear", "llama3")
WINDOW, WINDOWS = 512, 8
LONG, LONGS, TAIL = 4096, 1, 512
REPEATS = 20
UNIFORM = 0.7
ROWS, STEPS, BATCH = 256, 40, 12  # rows of each skill; steps; rows of a step
# Of 2e-4 and 1e-3 the one that was better for `soft`, with other texts to heal on, on 100 search documents a task.
RATES = {"soft": 1e-3, "hard": 1e-3}
_CONTEXT = Context(seed=0, tokenizer=None, folder=Path(), kept=Path())  # a pure operator asks for none of these


# --- context extension -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extended:
    """A method of context extension on the real model.

    Attributes:
        milliseconds: the time of apply and undo together, the median.
        window: mean log-loss of windows of 512 tokens, in nats per token.
        tail: mean log-loss of the last 512 of 4,096 tokens, in nats per token.
    """

    milliseconds: float
    window: float
    tail: float


def extended(quick: bool) -> dict[str, Extended]:
    """Method -> what it makes of the real model; `none` leaves the model as it is."""
    quiet()
    folder = CACHE / "models" / "base"
    model, tokenizer = load_model(folder, "bfloat16", "cpu"), load_tokenizer(folder)
    prose = b"\n".join(texts.sectors(texts.read_text("python"), "holdout")).decode("utf-8", "ignore")
    ids = tokenizer(prose, return_tensors="pt", verbose=False).input_ids[0]
    windows = ids[: WINDOW * (2 if quick else WINDOWS)].view(-1, WINDOW)
    longs = ids[len(ids) - LONG * (0 if quick else LONGS) :].view(-1, LONG)
    results = {}
    for method in METHODS:
        took = milliseconds(model, method, 3 if quick else REPEATS)
        with stretched(model, method):
            results[method] = Extended(took, loss(model, windows, WINDOW - 1), loss(model, longs, TAIL))
        print(f"{method:8} {results[method]}", flush=True)
    return results


@contextmanager
def stretched(model: Any, method: str) -> Iterator[None]:
    """Extends the model's context, and undoes that afterwards."""
    undo = _apply(model, method)
    try:
        yield
    finally:
        undo()


def milliseconds(model: Any, method: str, repeats: int) -> float:
    """The median wall time of apply and undo together."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        _apply(model, method)()
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def _apply(model: Any, method: str) -> Any:
    if method == "none":
        return lambda: None
    options = context_extension.Options.model_validate({"method": method, "factor": FACTOR})
    return context_extension.apply(model, options, _CONTEXT).undo


@torch.inference_mode()
def loss(model: Any, rows: torch.Tensor, last: int) -> float:
    """The mean log-loss of the `last` last tokens of each row; nan without rows."""
    losses = []
    for row in rows:
        logits = model(input_ids=row[None], use_cache=False, logits_to_keep=last + 1).logits[0, :-1].float()
        losses.append(float(F.cross_entropy(logits, row[-last:])))
    return sum(losses) / len(losses) if losses else math.nan


# --- healing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Healing:
    """The merges that healing is tried on, and what it learns from.

    Attributes:
        bench: the workbench that scores on the tasks of one split.
        merges: name -> the merge's recipe.
        data: skill -> the file of its texts.
        dropped: how many texts were left out because they hold documents of a task.
    """

    bench: Workbench
    merges: Mapping[str, Recipe]
    data: Mapping[str, str]
    dropped: int


@dataclass(frozen=True)
class Row:
    """The results of one model.

    Attributes:
        accuracy: skill -> the share of right answers.
        mean: the mean of the skills.
        training: seconds of training.
        score: the whole score, for paired differences.
    """

    accuracy: dict[str, float]
    mean: float
    training: float
    score: Any


def fitness(limit: int) -> Fitness:
    """The experiment's fitness, with at most `limit` documents of each task."""
    home = ROOT / "experiments" / "smollm2"
    data = yaml.safe_load((home / "fitness.yaml").read_text())
    return Fitness.model_validate({**data, "include": str(home / data["include"]), "limit": limit})


def prepare(folder: Path, split: str, limit: int, seed: int = 0) -> Healing:
    """Opens the models, and writes the texts to heal on.

    They are some of those that each skill's expert was trained on, without those in which the guard against overlap
    finds documents of a task of either split.
    """
    searched, survey = recipe_files.read_recipe(CACHE / "merged" / "recipe.yaml", lambda text: None)
    searched = searched.model_copy(update={"seed": seed})
    uniform = {"method": "task_arithmetic", "parameters": {"weight": UNIFORM}}
    merges = {
        "uniform": Recipe.model_validate({**{key: getattr(searched, key) for key in COMMON_KEYS}, **uniform}),
        "searched": searched,
    }
    asked = fitness(limit)
    whole = asked.model_copy(update={"limit": None})
    reserved = document_texts(whole.specs((*whole.search, *whole.holdout)), Path(str(asked.include)))
    data, dropped = {}, 0
    for skill in SKILLS:
        lines = (CACHE / "data" / skill / "train.jsonl").read_text().splitlines()
        pairs = [
            _pair(json.loads(line)) for line in random.Random(f"healing/{seed}/{skill}").sample(lines, 2 * ROWS)
        ]
        kept = clean(pairs, reserved)
        dropped += len(pairs) - len(kept)
        path = folder / f"{skill}.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in kept[:ROWS]))
        data[skill] = str(path)
    return Healing(_bench(asked, survey, split, folder), merges, data, dropped)


def _pair(document: Mapping[str, Any]) -> dict[str, str]:
    return {"prompt": document["prompt"], "completion": document["choices"][document["gold"]]}


def clean(pairs: Sequence[dict[str, str]], reserved: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The pairs that hold no document of a task."""
    if not pairs or not overlap.shared((pair["prompt"] + pair["completion"] for pair in pairs), reserved):
        return list(pairs)
    half = len(pairs) // 2
    return [] if not half else [*clean(pairs[:half], reserved), *clean(pairs[half:], reserved)]


def _bench(asked: Fitness, survey: Survey, split: str, folder: Path) -> Workbench:
    return Workbench(
        Setup(
            base=survey.base,
            experts=survey.experts,
            dtype="bfloat16",
            cache=str(folder / "cache"),
            fitness=asked,
            entries=asked.holdout if split == "holdout" else asked.search,
            hash_weights=False,
        )
    )


def step(healing: Healing, kind: str, steps: int, rate: float | None = None) -> OperatorStep:
    """The healing step: `soft` learns forward KL to each skill's expert, `hard` the texts' answers alone."""
    options: dict[str, Any] = {
        "data": dict(healing.data),
        "steps": steps,
        "batch": BATCH,
        "length": 64,
        "lr": rate or RATES[kind],
    }
    options |= {"teachers": {skill: skill for skill in SKILLS}} if kind == "soft" else {"loss": {"hard": 1.0}}
    return OperatorStep(name="distillation", options=options)


def measured(healing: Healing, recipe: Recipe, step: OperatorStep | None = None) -> Row:
    """Scores a merge, which is healed before if a step is given."""
    steps = () if step is None else (step,)
    score = healing.bench.evaluate(recipe.model_copy(update={"operators": steps}))
    accuracy = {
        name.removeprefix("smollm2_").removesuffix("_holdout"): value
        for name, value in score.measured.tasks.items()
    }
    seconds = score.training_records["distillation"]["training_seconds"] if step else math.nan
    return Row(accuracy, score.measured.mean, seconds, score)


def compared(healing: Healing, steps: int = STEPS) -> dict[str, Row]:
    """Scores the parents and the merges, and heals the merges and the parent that is best on these documents."""
    results: dict[str, Row] = {}

    def add(name: str, recipe: Recipe, step: OperatorStep | None = None) -> None:
        results[name] = row = measured(healing, recipe, step)
        print(
            f"{name:28}" + "".join(f"{row.accuracy[skill]:>12.3f}" for skill in SKILLS) + f"{row.mean:>12.3f}"
            f"{row.training:>12.0f}",
            flush=True,
        )

    first = next(iter(healing.merges.values()))
    for name in ("base", *SKILLS):
        add(name, parent_recipe(first, name))
    best = max(("base", *SKILLS), key=lambda name: results[name].mean)
    for name, recipe in {best: parent_recipe(first, best), **healing.merges}.items():
        if name not in results:
            add(name, recipe)
        for kind in RATES:
            add(f"{name}, {kind}", recipe, step(healing, kind, steps))
    return results


def difference(healing: Healing, ours: Row, theirs: Row) -> certificate.Paired:
    """The difference of two models' mean accuracies, paired by document."""
    return certificate.paired(certificate.differences(healing.bench.setup.entries, ours.score, theirs.score))
