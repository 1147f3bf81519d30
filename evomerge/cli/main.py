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
    """Runs the `evomerge` command with the arguments of this process."""
    # With threads of its own the tokenizers library would warn at every fork, and lm-eval and datasets do fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


if __name__ == "__main__":
    main()
