"""Tables, as a terminal shows them."""

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
    """Seconds as people read them; ? where they are not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def trials_table(trials: Sequence[Trial], title: str | None = None) -> Table:
    """Trials with their fitness and the reported metric of each task."""
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
    """The first trials of a front with what is climbed in each task.

    knee: the number of the trial that gives up least.
    """
    title = f"front, as climbed ({min(top, len(front))} of {len(front)}, knee {knee})"
    table = Table(title=title, title_justify="left")
    for column in ("trial", "fitness", *front[0].climbed):
        table.add_column(column, justify="right")
    for trial in front[:top]:
        cells = [f"{value:.4f}" for value in (trial.value or 0.0, *trial.climbed.values())]
        table.add_row(str(trial.number), *cells, style="bold" if trial.number == knee else None)
    return table


def summary_table(found: dict[str, Any]) -> Table:
    """The rows of `summary`, without the best trial."""
    table = Table.grid(padding=(0, 2))
    limit = found["budget"].get("candidates")
    table.add_row("study", found["study"])
    table.add_row("candidates", f"{found['candidates']}" + (f" of {limit}" if limit else ""))
    table.add_row("finished", "yes" if found["finished"] else "no")
    if found["failed"]:
        table.add_row("failed", str(found["failed"]))
    table.add_row("generations", str(found["generations"]))
    table.add_row("documents scored", f"{found['documents']:,}")
    table.add_row("tokens forwarded", f"{found['tokens']:,}")
    seconds = found["seconds_per_candidate"]
    if seconds:
        split = ", ".join(f"{phase} {value:.2f}" for phase, value in seconds.items() if value >= 0.005)
        table.add_row("seconds each", f"{sum(seconds.values()):.2f}  ({split})")
    table.add_row("running time", duration(found["elapsed"]))
    if "front" in found:
        table.add_row("front", f"{len(found['front'])} trials, hypervolume {found['hypervolume']:.4g}")
    for warning in found["warnings"]:
        table.add_row("warning", warning, style="yellow")
    return table


def training_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `training_rows`."""
    table = Table(title="trained, on all search documents", title_justify="left")
    table.add_column("model")
    for column in ("before", "after", "steps", "tokens", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        before, after = ("" if row[key] is None else f"{row[key]:.4f}" for key in ("before", "after"))
        spent = [f"{row['steps']}", f"{row['tokens']:,}", f"{row['seconds']:.1f}"]
        table.add_row(row["name"], before, after or f"failed: {row['reason']}", *spent)
    return table


def extension_table(found: Mapping[str, Any]) -> Table:
    """What `single.extend` measured."""
    table = Table(title="log-loss in nats per token", title_justify="left")
    for column in ("", f"inside {found['old_length']:,} tokens", f"beyond, to {found['new_length']:,}"):
        table.add_column(column, justify="right")
    for name in ("before", "after"):
        cells = ["" if value is None else f"{value:.4f}" for value in found[name].values()]
        table.add_row(name, *cells)
    return table


def distillation_table(found: Mapping[str, Any]) -> Table:
    """What `single.distill` came to, with the curve of its loss."""
    table = Table.grid(padding=(0, 2))
    if found["steps"]:
        table.add_row("loss before", f"{found['before']:.4f}")
        table.add_row("loss after", f"{found['after']:.4f}")
        table.add_row("by step", _curve([loss for _, loss in found["loss"]]))
    table.add_row("steps", f"{found['steps']}, {found['tokens']:,} tokens, {found['seconds']:.1f} s")
    return table


_LEVELS = "▁▂▃▄▅▆▇█"


def _curve(values: Sequence[float], width: int = 60) -> str:
    """Values as a line of blocks, its highest and lowest beside it."""
    count = min(len(values), width)
    parts = [values[at * len(values) // count : (at + 1) * len(values) // count] for at in range(count)]
    means = [statistics.fmean(part) for part in parts]
    low, high = min(means), max(means)
    blocks = [_LEVELS[round((one - low) / ((high - low) or 1.0) * (len(_LEVELS) - 1))] for one in means]
    return f"{''.join(blocks)}  {high:.4f} to {low:.4f}"


def scores_table(tasks: dict[str, float], climbed: dict[str, float]) -> Table:
    """The scores of one model."""
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


def plan_table(found: Mapping[str, Any]) -> Table:
    """What an experiment comes to: the rows of `plan_json`, and others."""
    table = Table.grid(padding=(0, 2))
    for key, value in found.items():
        told = ("yes" if value else "no") if isinstance(value, bool) else value
        table.add_row(key.replace("_", " "), f"{told:,}" if isinstance(told, int) else str(told))
    return table
