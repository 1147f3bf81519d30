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

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
StudyFolder = Annotated[Path, typer.Argument(help="The study's folder.", show_default=False)]
OutputFolder = Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)]
TrialOption = Annotated[int | None, typer.Option(help="A trial's number; the best by default.")]
PickOption = Annotated[
    str | None,
    typer.Option(
        help="Which trial: best (the default), knee, a number, or weights of tasks like maths=2,code=1.",
        show_default=False,
    ),
]


def command(function: Callable[P, R]) -> Callable[P, R]:
    """A command whose errors are one clear message and an exit code, never a traceback."""

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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Evolutionary merging of language models: exact, fast and honest."""


def warn_before(plan: Plan) -> list[str]:
    """Tells on standard error what can be said against an experiment before it runs."""
    from evomerge.results import warnings

    experiment = plan.experiment
    found = warnings.before(plan.coordinates, experiment.budget, experiment.sampler)
    for text in found:
        err.print(f"warning: {text}", style="yellow", highlight=False, soft_wrap=True)
    return found


class Steps:
    """Says on standard error what is being done: a line for each step, and on a terminal a running clock."""

    def __init__(self) -> None:
        self._clock: Progress | None = None

    def __call__(self, text: str) -> None:
        """A step begins."""
        self.done()
        err.print(f"{text} ...", style="dim", markup=False, highlight=False)
        if err.is_terminal:
            self._clock = Progress(SpinnerColumn(), TimeElapsedColumn(), console=err, transient=True)
            self._clock.add_task("")
            with contextlib.suppress(LiveError):  # something else moves on the terminal already
                self._clock.start()

    def done(self) -> None:
        """The last step is at its end."""
        if self._clock is not None:
            self._clock.stop()
            self._clock = None


step = Steps()


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
