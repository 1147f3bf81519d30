"""Who watches a study."""

from __future__ import annotations

from typing import Protocol

from evomerge.studies.trials import Trial


class Observer(Protocol):
    """Is told of a study's progress."""

    def generation(self, number: int, size: int) -> None:
        """A generation of so many candidates begins."""

    def trial(self, trial: Trial) -> None:
        """A trial is in the log."""
