"""The one kind of multiple-choice document that the shipped tasks are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """Asks which of the choices is right after the prompt. The choices are distinct; `choices[gold]` is right."""

    prompt: str
    choices: tuple[str, ...]
    gold: int
