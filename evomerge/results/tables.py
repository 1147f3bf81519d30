"""Tables of trials, studies, certificates and plans, as a terminal shows them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from evomerge.results.paired_test import p_text
from evomerge.studies.trials import Trial

if TYPE_CHECKING:  # which imports torch
    from evomerge.results.certificate import Certificate


def duration(seconds: float | None) -> str:
    """A number of seconds as people read it, such as `3 min 05 s`; `?` where it is not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def trials_table(trials: Sequence[Trial], title: str | None = None) -> Table:
    """Trials, each with its fitness, the reported metric of each task, their mean, and the recipe's hash."""
    tasks = list(next((trial.tasks for trial in trials if trial.tasks), {}))
    table = Table(title=title, title_justify="left")
    table.add_column("trial", justify="right")
    for column in ("fitness", *tasks, "mean"):
        table.add_column(column, justify="right")
    table.add_column("recipe")
    for trial in trials:
        if trial.value is None:
            table.add_row(str(trial.number), "failed", *[""] * len(tasks), "", trial.reason)
            continue
        cells = [f"{trial.tasks[task]:.4f}" for task in tasks]
        table.add_row(str(trial.number), f"{trial.value:.4f}", *cells, f"{trial.mean:.4f}", trial.recipe[:12])
    return table


def front_table(front: Sequence[Trial], top: int, knee: int) -> Table:
    """The first trials of a front, each with its fitness and the climbed metric of each task.

    Args:
        front: at least one trial.
        top: how many trials are shown at most.
        knee: the number of the trial at the knee, which is shown in bold.
    """
    title = f"front, as climbed ({min(top, len(front))} of {len(front)}, knee {knee})"
    table = Table(title=title, title_justify="left")
    for column in ("trial", "fitness", *front[0].climbed):
        table.add_column(column, justify="right")
    for trial in front[:top]:
        cells = [f"{value:.4f}" for value in (trial.value or 0.0, *trial.climbed.values())]
        table.add_row(str(trial.number), *cells, style="bold" if trial.number == knee else None)
    return table


def summary_table(summary: dict[str, Any]) -> Table:
    """The values of `summary.summary`, without the trials among them."""
    table = Table.grid(padding=(0, 2))
    limit = summary["budget"].get("candidates")
    table.add_row("study", summary["study"])
    table.add_row("candidates", f"{summary['candidates']}" + (f" of {limit}" if limit else ""))
    table.add_row("finished", "yes" if summary["finished"] else "no")
    if summary["failed"]:
        table.add_row("failed", str(summary["failed"]))
    table.add_row("generations", str(summary["generations"]))
    table.add_row("documents scored", f"{summary['documents']:,}")
    table.add_row("tokens forwarded", f"{summary['tokens']:,}")
    seconds = summary["seconds_per_candidate"]
    if seconds:
        split = ", ".join(f"{phase} {value:.2f}" for phase, value in seconds.items() if value >= 0.005)
        table.add_row("seconds each", f"{sum(seconds.values()):.2f}  ({split})")
    table.add_row("running time", duration(summary["elapsed"]))
    if "front" in summary:
        table.add_row("front", f"{len(summary['front'])} trials, hypervolume {summary['hypervolume']:.4g}")
    for warning in summary["warnings"]:
        table.add_row("warning", warning, style="yellow")
    return table


def training_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The second phase: the rows of `summary.training_rows`."""
    table = Table(title="trained, on all search documents", title_justify="left")
    table.add_column("model")
    for column in ("before", "after", "steps", "tokens", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        before, after = ("" if row[key] is None else f"{row[key]:.4f}" for key in ("before", "after"))
        spent = [f"{row['steps']}", f"{row['tokens']:,}", f"{row['seconds']:.1f}"]
        table.add_row(row["name"], before, after or f"failed: {row['reason']}", *spent)
    return table


def extension_table(result: Mapping[str, Any]) -> Table:
    """The losses before and after, from the result of `exporting.one_model.extend`."""
    table = Table(title="log-loss in nats per token", title_justify="left")
    for column in ("", f"inside {result['old_length']:,} tokens", f"beyond, to {result['new_length']:,}"):
        table.add_column(column, justify="right")
    for name in ("before", "after"):
        cells = ["" if value is None else f"{value:.4f}" for value in result[name].values()]
        table.add_row(name, *cells)
    return table


def distillation_table(result: Mapping[str, Any]) -> Table:
    """The loss before and after, with its curve, from the result of `exporting.one_model.distill`."""
    table = Table.grid(padding=(0, 2))
    if result["steps"]:
        table.add_row("loss before", f"{result['before']:.4f}")
        table.add_row("loss after", f"{result['after']:.4f}")
        table.add_row("by step", _curve([loss for _, loss in result["loss"]]))
    table.add_row("steps", f"{result['steps']}, {result['tokens']:,} tokens, {result['seconds']:.1f} s")
    return table


_LEVELS = "▁▂▃▄▅▆▇█"  # the blocks of a curve, from the lowest value to the highest


def _curve(values: Sequence[float], width: int = 60) -> str:
    """Values as a line of at most `width` blocks, with the highest and the lowest value beside it."""
    count = min(len(values), width)
    parts = [values[at * len(values) // count : (at + 1) * len(values) // count] for at in range(count)]
    means = [statistics.fmean(part) for part in parts]
    low, high = min(means), max(means)
    blocks = [_LEVELS[round((one - low) / ((high - low) or 1.0) * (len(_LEVELS) - 1))] for one in means]
    return f"{''.join(blocks)}  {high:.4f} to {low:.4f}"


def scores_table(tasks: dict[str, float], climbed: dict[str, float]) -> Table:
    """The scores of one model: the reported and the climbed metric of each task."""
    table = Table()
    table.add_column("task")
    table.add_column("metric", justify="right")
    table.add_column("climbed", justify="right")
    for task, value in tasks.items():
        table.add_row(task, f"{value:.4f}", f"{climbed[task]:.4f}")
    return table


def certificate_table(certificate: Certificate) -> Table:
    """All models on the hold-out documents, and the winner's paired gain over each. Warnings stand below."""
    tasks = list(certificate.rows[0].tasks)
    table = Table(title="on held-out documents", title_justify="left", caption_justify="left")
    if certificate.warnings:
        table.caption = Text("\n".join(f"warning: {warning}" for warning in certificate.warnings), style="yellow")
    table.add_column("model")
    for column in (*tasks, "mean", "winner minus this", "p", ""):
        table.add_column(column, justify="right")
    top = max(row.mean for row in certificate.rows)
    for row in certificate.rows:
        against = row.against
        gain = (
            [f"{against.gain:+.3f}", p_text(against.p).removeprefix("= "), against.verdict]
            if against
            else ["", "", ""]
        )
        style = "bold" if row.mean == top else None
        cells = [f"{row.tasks[task]:.3f}" for task in tasks]
        table.add_row(row.name, *cells, f"{row.mean:.3f}", *gain, style=style)
    return table


def plan_table(plan: Mapping[str, Any]) -> Table:
    """A table of names and values, such as those of `summary.plan_json`."""
    table = Table.grid(padding=(0, 2))
    for key, value in plan.items():
        told = ("yes" if value else "no") if isinstance(value, bool) else value
        table.add_row(key.replace("_", " "), f"{told:,}" if isinstance(told, int) else str(told))
    return table
