"""The protocol of those who watch a study while it runs."""

from __future__ import annotations

from typing import Protocol

from evomerge.studies.trials import Trial


class Observer(Protocol):
    """Is told of a study's progress."""

    def generation(self, number: int, size: int) -> None:
        """Is told that a generation begins, and how many candidates it has."""

    def trial(self, trial: Trial) -> None:
        """Is told that a trial has been added to the log."""
