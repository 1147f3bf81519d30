"""The command `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.app import JsonFlag, command, err, out, print_json


@command
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="The folder for models, study and export.")] = Path(
        "evomerge-demo"
    ),
    candidates: Annotated[int, typer.Option(min=1, help="How many candidates the search may try.")] = 400,
    as_json: JsonFlag = False,
) -> None:
    """Train a tiny family of models, search for their best merge, test it and export it, in about three minutes."""
    from evomerge.demo import tour

    result = tour.run(folder, candidates, err, out if not as_json else err)
    if as_json:
        print_json(result)


COMMANDS = (demo,)
