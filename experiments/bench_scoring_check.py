"""Whether both sides of the scoring benchmark give the same answers, and how many tokens had to be forwarded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_scoring_sides import Answers, OurRun, Ours, StockRun, tree_tokens
from bench_scoring_tasks import Workload

# The largest difference allowed, by kind. In bfloat16 lm-eval rounds logits, and sums of them, to bfloat16.
_TOLERANCES = {
    "float32": {"rolling": 1e-5, "generate": 0.0},
    "bfloat16": {"rolling": 1e-2, "generate": 1.0},
}
_CHOICES = {"float32": 1e-3, "bfloat16": 1.5}


@dataclass(frozen=True)
class Check:
    """The comparison of one candidate's answers.

    Attributes:
        difference: the largest difference between the right answers' log-likelihoods, or between their margins to
            the best wrong ones; for rolling, between the texts' log-likelihoods, as a share of them; for generated
            texts, the share that differs.
        faults: what is wrong, one line each.
    """

    difference: float
    faults: list[str]


def compare(workload: Workload, folder: Path, stock: StockRun, ours: OurRun, texts: list[Any], dtype: str) -> Check:
    """Compares one candidate's results. texts: our answer to the first request of each document."""
    score, tied = ours.report.tasks[workload.name], False
    tolerance = _TOLERANCES[dtype].get(workload.kind, _CHOICES[dtype])
    theirs = [stock.answers[at][0] for at in score.documents.tolist()]
    if workload.kind == "generate":
        pairs = zip(theirs, texts, strict=True)
        check = Check(sum(one != other for one, other in pairs) / len(texts), [])
    elif workload.kind == "rolling":
        wanted, measured = np.array(theirs), np.array(texts)
        check = Check(float(np.abs(measured / wanted - 1).max()), [])
    else:
        lines = (folder / f"{workload.name}-test.jsonl").read_text(encoding="utf-8").splitlines()
        check, tied = _choices(stock.answers, [json.loads(line)["gold"] for line in lines], score.metrics)
    if not check.difference <= tolerance:  # a NaN is none
        check.faults.append("answers differ by more than rounding")
    for metric in ("acc", "exact_match"):
        if metric in stock.results and not tied and dtype == "float32":
            measured_share, wanted_share = score.aggregates[metric], stock.results[metric]
            if abs(measured_share - wanted_share) > 1e-9:
                check.faults.append(f"{metric} is {measured_share:.4f}, lm-eval's is {wanted_share:.4f}")
    return check


def _choices(answers: Answers, golds: list[int], ours: dict[str, np.ndarray]) -> tuple[Check, bool]:
    """The comparison of multiple choice, and whether some document is tied within it.

    A document is tied if its best two choices lie no further apart than the two sides do.
    """
    right, margins = [], []
    for at, gold in enumerate(golds):
        choices = np.array([answers[at][index][0] for index in sorted(answers[at])])
        right.append(choices[gold])
        margins.append(choices[gold] - np.delete(choices, gold).max())
    apart = [np.abs(ours["loglikelihood"] - right).max(), np.abs(ours["margin"] - margins).max()]
    difference = float(np.max(apart))
    return Check(difference, []), bool(np.abs(margins).min() <= 2 * difference)


def tokens(ours: Ours, run: OurRun) -> dict[str, Any]:
    """How many tokens were forwarded, and how many the prefix trees of rows and prompts hold.

    Generated tokens are counted in `tokens` and not in the tree.
    """
    rows, prompts = ours.rows()
    longest = max(map(len, [*rows, *prompts]))
    return {
        "rows": len(rows) + len(prompts),
        "row_tokens": sum(map(len, rows)) + sum(map(len, prompts)),
        "longest_row": longest,
        "tree_tokens": tree_tokens(rows) + tree_tokens(prompts),
        "tokens": run.report.tokens,
        "padding": run.report.padding,
    }
