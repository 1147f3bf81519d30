"""Tables and the live view."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evomerge import advice, elites, pareto, plugins, records
from evomerge.certify import Certificate, p_text, truncation_warnings
from evomerge.config import Budget
from evomerge.records import Trial
from evomerge.study import Plan

PHASES = ("merge", "operators", "scoring")
_ROLES = {
    "search": "",
    "select": " against the best",
    "final": " on all documents",
    "elite": " before training",
    "trained": " after training",
    "parent": " parent {}",
    "control": " parent {} after training",
}


# --- a running study ---------------------------------------------------------------------------------------


class LiveView:
    """Shows a study while it runs: a live table on a terminal, a line for each candidate elsewhere.

    Args:
        console: where to; its own stderr by default in the command line.
        budget: for what is left.
        trials: those of earlier sessions.
    """

    def __init__(self, console: Console, budget: Budget, trials: Sequence[Trial] = ()) -> None:
        self._console = console
        self._budget = budget
        self._trials = list(trials)
        self._here = 0  # trials of this session
        self._generation = (0, 0)
        self._start: float | None = None
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def message(self, text: str) -> None:
        """A step of the set-up."""
        self._console.print(f"{text} ...", style="dim", markup=False, highlight=False)

    def generation(self, number: int, size: int) -> None:
        """A generation begins."""
        self._generation = (number, size)
        if self._start is None:
            self._start = time.monotonic()

    def trial(self, trial: Trial) -> None:
        """A trial is in the log."""
        self._trials.append(trial)
        self._here += 1
        if not self._console.is_terminal:
            self._console.print(self._line(trial), markup=False, highlight=False, soft_wrap=True)
        elif trial.reason:
            self._console.print(f"candidate {trial.number} failed: {trial.reason}", style="yellow", markup=False)

    def _line(self, trial: Trial) -> str:
        total = f"/{self._budget.candidates}" if self._budget.candidates else ""
        role = _ROLES[trial.role].format(trial.of)
        counted = f"candidate {trial.number + 1}{total}" if trial.searched else "second phase:"
        head = f"[generation {trial.generation}] {counted}{role}"
        if trial.value is None:
            return f"{head} failed: {trial.reason}"
        best = records.best(self._trials)
        assert best is not None
        spent = " ".join(f"{phase} {trial.seconds[phase]:.2f} s" for phase in PHASES if trial.seconds.get(phase))
        left = f", {_duration(self._left())} left" if self._left() is not None else ""
        return f"{head} fitness {trial.value:.4f} (best {best.value:.4f}) {spent or 'seen before'}{left}"

    def _left(self) -> float | None:
        """Seconds to the end of the budget, at this session's pace."""
        if self._budget.candidates is None or self._start is None or not self._here:
            return None
        pace = (time.monotonic() - self._start) / self._here
        return pace * max(self._budget.candidates - len(self._trials), 0)

    def _render(self) -> RenderableType:
        if self._start is None:
            return Text("")
        done, total = sum(trial.searched for trial in self._trials), self._budget.candidates
        grid = Table.grid(padding=(0, 2))
        grid.add_row("generation", f"{self._generation[0]}  ({self._generation[1]} candidates)")
        failed = sum(trial.value is None for trial in self._trials)
        counted = f"{done}" + (f" of {total}, {total - done} left" if total else "")
        grid.add_row("candidates", counted + (f", {failed} failed" if failed else ""))
        spent = [trial.seconds for trial in self._trials if trial.seconds]
        if spent:
            shares = {phase: statistics.median(one.get(phase, 0.0) for one in spent) for phase in PHASES}
            split = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in shares.items() if seconds >= 0.005)
            grid.add_row("seconds each", f"{sum(shares.values()):.2f}  ({split})")
        if (left := self._left()) is not None:
            grid.add_row("time left", _duration(left))
        best = records.best(self._trials)
        parts: list[RenderableType] = [grid]
        if best is not None:
            parts.append(trials_table([best], title="best so far"))
        if total:
            parts.append(ProgressBar(total=total, completed=done, width=60))
        return Group(*parts)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


# --- tables ------------------------------------------------------------------------------------------------


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


def summary(trials: Sequence[Trial], experiment: Any, folder: str) -> dict[str, Any]:
    """What `status` tells of a study, as plain values."""
    best = records.best(trials)
    every, trials = trials, [trial for trial in trials if trial.searched]
    finished = [trial for trial in trials if trial.value is not None]
    spent = [trial.seconds for trial in trials if trial.seconds]
    budget: Budget = experiment.budget
    several = experiment.fitness.objective == "pareto"
    second = elites.warnings(experiment.experts, experiment.operators, every)
    advised = advice.after(
        trials,
        advice.coordinates_of(experiment.space, experiment.operators, trials),
        ended=_spent(trials, budget),
        pareto=several,
        fresh=plugins.load("samplers", experiment.sampler.name).FRESH,
    )
    return {
        "study": folder,
        "candidates": len(trials),
        "budget": budget.model_dump(exclude_none=True),
        "finished": budget.candidates is not None and len(trials) >= budget.candidates,
        "failed": len(trials) - len(finished),
        "generations": 1 + max((trial.generation for trial in trials), default=-1),
        "documents": sum(trial.documents for trial in trials),
        "tokens": sum(trial.tokens for trial in trials),
        "seconds_per_candidate": {
            phase: statistics.median(one.get(phase, 0.0) for one in spent) for phase in PHASES if spent
        },
        "elapsed": max((trial.elapsed for trial in trials), default=0.0),
        "best": None if best is None else trial_json(best),
        **({"trained": rows} if (rows := training_rows(every)) else {}),
        "warnings": [*([] if best is None else _warnings(best, finished, Path(folder))), *advised, *second],
        **(_front(trials) if several and finished else {}),
    }


def _spent(trials: Sequence[Trial], budget: Budget) -> bool:
    """Whether a limit is reached; of one by time, as far as the trials tell."""
    elapsed = max((trial.elapsed for trial in trials), default=0.0)
    return (
        any(trial.role == "final" for trial in trials[-1:])
        or len(trials) >= (budget.candidates or math.inf)
        or sum(trial.documents for trial in trials) >= (budget.documents or math.inf)
        or elapsed >= 3600 * (budget.hours or math.inf)
    )


def _front(trials: Sequence[Trial]) -> dict[str, Any]:
    """What there is to tell of several objectives: the trials that no other beats in all, best fitness first."""
    front = sorted(pareto.front(trials), key=lambda trial: (-(trial.value or 0.0), trial.number))
    points = [tuple(trial.climbed.values()) for trial in front]
    return {
        "front": [trial_json(trial) for trial in front],
        "knee": pareto.knee(front).number,
        "hypervolume": pareto.hypervolume(points, pareto.reference(trials)),
    }


def _warnings(best: Trial, finished: Sequence[Trial], folder: Path) -> list[str]:
    """What besides skill may have made the best trial the best: it is held against the median trial."""
    if not any(trial.truncated for trial in finished):
        return []
    score = records.read_score(folder, best.recipe, best.fitness)
    kept = [records.read_truncated(folder, recipe, best.fitness) for recipe in {one.recipe for one in finished}]
    counts = [truncated for truncated in kept if truncated is not None]
    if score is None or not counts:
        return []
    median = {task: statistics.median_low(one[task] for one in counts) for task in score.report.tasks}
    return list(truncation_warnings(f"trial {best.number}", score.report, {"the median trial": median}))


def trial_json(trial: Trial) -> dict[str, Any]:
    """A trial as plain values."""
    return {**vars(trial), "mean": trial.mean}


def summary_table(found: dict[str, Any]) -> Table:
    """The rows of `summary`, without the best trial."""
    table = Table.grid(padding=(0, 2))
    limit = found["budget"].get("candidates")
    table.add_row("study", found["study"])
    table.add_row("candidates", f"{found['candidates']}" + (f" of {limit}" if limit else ""))
    if found["failed"]:
        table.add_row("failed", str(found["failed"]))
    table.add_row("generations", str(found["generations"]))
    table.add_row("documents scored", f"{found['documents']:,}")
    table.add_row("tokens forwarded", f"{found['tokens']:,}")
    seconds = found["seconds_per_candidate"]
    if seconds:
        split = ", ".join(f"{phase} {value:.2f}" for phase, value in seconds.items() if value >= 0.005)
        table.add_row("seconds each", f"{sum(seconds.values()):.2f}  ({split})")
    table.add_row("running time", _duration(found["elapsed"]))
    if "front" in found:
        table.add_row("front", f"{len(found['front'])} trials, hypervolume {found['hypervolume']:.4g}")
    for warning in found["warnings"]:
        table.add_row("warning", warning, style="yellow")
    return table


def training_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """What the second phase came to, as plain values: the elites and the control, each before and after training;
    the best trained first."""
    rows = []
    for trial in trials:
        if trial.role not in ("trained", "control"):
            continue
        before = elites.before(trial, trials)
        rows.append(
            {
                "name": f"control: {trial.of}" if trial.of else f"trial {trial.number}",
                "before": None if before is None else before.value,
                "after": trial.value,
                "steps": sum(one["steps"] for one in trial.left.values()),
                "tokens": sum(one["tokens"] for one in trial.left.values()),
                "seconds": sum(one["seconds"] for one in trial.left.values()),
                "reason": trial.reason,
            }
        )
    return sorted(rows, key=lambda row: -math.inf if row["after"] is None else -row["after"])


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


class TrainingBar:
    """Shows the steps of a training as they are done."""

    def __init__(self, console: Console, steps: int) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, loss="", visible=False)

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, number: int, measured: Mapping[str, float]) -> None:
        """A step is done."""
        self._progress.update(self._task, completed=number, loss=f"{measured['loss']:.4f}", visible=True)


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


def plan_json(plan: Plan) -> dict[str, Any]:
    """What an experiment comes to, as plain values."""
    experiment = plan.experiment
    return {
        "base": str(plan.survey.base),
        "experts": ", ".join(experiment.experts),
        "parameters": plan.survey.parameters,
        "layers": plan.survey.layers,
        "dtype": plan.survey.dtype,
        "model_bytes": plan.model_bytes,
        "checkpoint_bytes": plan.survey.nbytes,
        "method": " or ".join(experiment.space.methods),
        "genes": len(plan.coordinates),
        "sampler": experiment.sampler.name,
        "search_tasks": ", ".join(entry.task for entry in experiment.fitness.search),
        "holdout_tasks": ", ".join(entry.task for entry in experiment.fitness.holdout) or "none",
        **({"operators": ", ".join(one.name for one in experiment.operators)} if experiment.operators else {}),
        **({"training": _expected(plan)} if plan.training else {}),
        "study": str(plan.folder),
    }


def _expected(plan: Plan) -> str:
    """What the second phase takes for each of its candidates, roughly."""
    found = []
    for operator in plan.training:
        cost = operator.module.estimate(
            operator.module.Options.model_validate(operator.options), plan.survey.parameters
        )
        found.append(
            f"{operator.name}: at most {cost.steps} steps of {cost.tokens:,} tokens, {_size(cost.peak_bytes)} of "
            f"memory beside activations, {_size(cost.disk_bytes)} on disk"
        )
    return "; ".join(found)


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
