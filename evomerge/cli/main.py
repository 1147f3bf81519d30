"""The `evomerge` command."""

from __future__ import annotations

import os

from evomerge.cli import demo, finishing, models, searching, shipped
from evomerge.cli.app import app

__all__ = ["app", "main"]

for group in (searching, finishing, models, shipped, demo):  # the order in which help lists them
    for function in group.COMMANDS:
        app.command()(function)


def main() -> None:
    """The `evomerge` command."""
    # lm-eval and datasets look for a hub at every turn; what a person names by Hub id is fetched all the same.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


if __name__ == "__main__":
    main()
