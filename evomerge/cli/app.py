"""What all commands share: the application, its consoles, and how a command ends."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.errors import LiveError
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

from evomerge import __version__
from evomerge.errors import EvomergeError
from evomerge.models import NOTE

if TYPE_CHECKING:
    from evomerge.studies.plan import Plan

INTERRUPTED = 130

app = typer.Typer(
    help="Evolutionary merging of language models: exact, fast and honest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_WIDTH = None if sys.stdout.isatty() else 140  # a pipe has no width to fit
out, err = Console(width=_WIDTH, markup=False), Console(stderr=True, markup=False)

P = ParamSpec("P")
R = TypeVar("R")

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output, and nothing else there.")
]
StudyFolder = Annotated[Path, typer.Argument(help="The study's folder.", show_default=False)]
OutputFolder = Annotated[
    Path, typer.Argument(help="The folder to make; it must be new or empty.", show_default=False)
]
TrialOption = Annotated[int | None, typer.Option(help="The number of a trial; the best trial by default.")]
PickOption = Annotated[
    str | None,
    typer.Option(
        help="Which trial: best (the default), knee, a number, or weights of tasks such as maths=2,code=1.",
        show_default=False,
    ),
]


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command so that its errors become one clear message and an exit code, never a traceback."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except EvomergeError as error:
            err.print("error:", style="bold red", end=" ")
            err.print(str(error), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            err.print(f"error: {where}{error.strerror or error}", highlight=False, soft_wrap=True)
            raise typer.Exit(EvomergeError.exit_code) from None
        except KeyboardInterrupt:
            err.print("stopped; what was finished is kept")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            step.done()

    return wrapped


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Evolutionary merging of language models: exact, fast and honest."""


def warn_before(plan: Plan) -> list[str]:
    """Prints the warnings about an experiment that has not run yet to standard error, and returns them."""
    from evomerge.results import warnings

    experiment = plan.experiment
    sentences = [*plan.survey.notes, *warnings.before(plan.coordinates, experiment.budget, experiment.sampler)]
    for sentence in sentences:
        err.print(f"warning: {sentence}", style="yellow", highlight=False, soft_wrap=True)
    return sentences


class Steps:
    """Tells on standard error what a command does now: a line for each step, and on a terminal a running clock."""

    def __init__(self) -> None:
        self._clock: Progress | None = None

    def __call__(self, text: str) -> None:
        """Announces the step that begins now, and ends the one before. A note is shown as it is."""
        self.done()
        if text.startswith(NOTE):
            err.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
            return
        err.print(f"{text} ...", style="dim", markup=False, highlight=False)
        if err.is_terminal:
            self._clock = Progress(SpinnerColumn(), TimeElapsedColumn(), console=err, transient=True)
            self._clock.add_task("")
            with contextlib.suppress(LiveError):  # something else moves on the terminal already
                self._clock.start()

    def note(self, text: str) -> None:
        """Tells something on the side, which is no step."""
        self.done()
        err.print(f"note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def done(self) -> None:
        """Ends the last step: its clock stops."""
        if self._clock is not None:
            self._clock.stop()
            self._clock = None


step = Steps()


def print_json(value: Any) -> None:
    """Writes a value to standard output as indented JSON.

    Raises:
        ValueError: a number in it is not finite.
    """
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
