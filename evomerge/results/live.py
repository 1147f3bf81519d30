"""Shows a study while it runs: as a live table on a terminal, as lines elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from evomerge.results.tables import duration, trials_table
from evomerge.studies.candidates.score import PHASES
from evomerge.studies.experiment import Budget
from evomerge.studies.trials import Trial, best_trial

# What a line says of a trial's role, after its number; {} is the parent.
_ROLES = {
    "search": "",
    "select": " against the best",
    "final": " on all documents",
    "elite": " before training",
    "trained": " after training",
    "parent": " parent {}",
    "control": " parent {} after training",
}


class LiveView:
    """Shows a study while it runs: a live table on a terminal, a line for each candidate elsewhere.

    It is the `studies.observer.Observer` of the study.

    Args:
        console: where it is shown.
        budget: the study's budget, for the time that is left.
        trials: the trials of earlier sessions.
    """

    def __init__(self, console: Console, budget: Budget, trials: Sequence[Trial] = ()) -> None:
        self._console = console
        self._budget = budget
        self._trials = list(trials)
        self._here = 0  # the number of trials in this session
        self._generation = (0, 0)
        self._start: float | None = None
        self._spinner, self._step = Spinner("dots"), time.monotonic()
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
        """Announces a step of the set-up that begins now."""
        self._step = time.monotonic()
        self._console.print(f"{text} ...", style="dim", markup=False, highlight=False)

    def generation(self, number: int, size: int) -> None:
        """Notes that a generation begins, and how many candidates it has."""
        self._generation = (number, size)
        if self._start is None:
            self._start = time.monotonic()

    def trial(self, trial: Trial) -> None:
        """Takes in a trial that has been added to the log."""
        self._trials.append(trial)
        self._here += 1
        if not self._console.is_terminal:
            self._console.print(self._line(trial), markup=False, highlight=False, soft_wrap=True)
        elif trial.reason:
            self._console.print(f"candidate {trial.number} failed: {trial.reason}", style="yellow", markup=False)

    def _line(self, trial: Trial) -> str:
        """The line that tells of a trial."""
        total = f"/{self._budget.candidates}" if self._budget.candidates else ""
        role = _ROLES[trial.role].format(trial.parent)
        counted = f"candidate {trial.number + 1}{total}" if trial.searched else "second phase:"
        head = f"[generation {trial.generation}] {counted}{role}"
        if trial.value is None:
            return f"{head} failed: {trial.reason}"
        best = best_trial(self._trials)
        assert best is not None
        spent = " ".join(f"{phase} {trial.seconds[phase]:.2f} s" for phase in PHASES if trial.seconds.get(phase))
        left = f", {duration(self._left())} left" if self._left() is not None else ""
        return f"{head} fitness {trial.value:.4f} (best {best.value:.4f}) {spent or 'seen before'}{left}"

    def _left(self) -> float | None:
        """The seconds to the end of the budget at the pace of this session; None where they are not known."""
        if self._budget.candidates is None or self._start is None or not self._here:
            return None
        pace = (time.monotonic() - self._start) / self._here
        return pace * max(self._budget.candidates - len(self._trials), 0)

    def _render(self) -> RenderableType:
        """The live table, with the best trial and a bar; a running clock until the first generation begins."""
        if self._start is None:  # nothing is evaluated yet: workers start
            self._spinner.update(text=duration(time.monotonic() - self._step))
            return self._spinner
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
            grid.add_row("time left", duration(left))
        best = best_trial(self._trials)
        parts: list[RenderableType] = [grid]
        if best is not None:
            parts.append(trials_table([best], title="best so far"))
        if total:
            parts.append(ProgressBar(total=total, completed=done, width=60))
        return Group(*parts)


class TrainingBar:
    """Shows the steps of a training as they are done, with the loss: a progress bar on a terminal."""

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
        """Moves the bar to a step that is done. `measured` holds its `loss`."""
        self._progress.update(self._task, completed=number, loss=f"{measured['loss']:.4f}", visible=True)
