"""Sentences hidden in a passage of text, and a question about the first of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.scoring.documents.questions import Question
from evomerge.scoring.documents.texts import Half, passages


@dataclass(frozen=True)
class HiddenFact:
    """What is hidden in one document, and what is asked of it.

    Attributes:
        needles: the sentences that are hidden; the first is asked for.
        question: stands at the document's end.
        choices, gold: see `questions.Question`.
    """

    needles: Sequence[str]
    question: str
    choices: tuple[str, ...]
    gold: int

    @property
    def size(self) -> int:
        """How many bytes of a document are not the passage's: needles, question and the longest choice."""
        needles = sum(len(needle) + 2 for needle in self.needles)
        return len(self.question) + 1 + max(map(len, self.choices)) + needles


def hidden_questions(
    facts: Sequence[HiddenFact], length: int, depth: float | str, rng: random.Random, text: bytes, split: Half
) -> list[Question]:
    """A question for each fact, with a passage of text around its needles.

    Args:
        length: bytes of a document, question and answer included.
        depth: where the first needle stands, from 0 (first) to 1 (last), or "random"; the others are anywhere.
        text: b"" stands for filler, see `texts.passages`.

    Raises:
        ValueError: the length does not hold what is hidden and asked, or the text is too short.
    """
    largest = max(fact.size for fact in facts)
    if length <= largest:
        raise ValueError(f"length: is {length}, but what is hidden and asked takes {largest} bytes; give more")
    around = passages(text, split, length - min(fact.size for fact in facts), len(facts), rng)
    questions = []
    for fact, passage in zip(facts, around, strict=True):
        depths = [rng.random() if depth == "random" else float(depth), *(rng.random() for _ in fact.needles[1:])]
        body = hide(passage[: length - fact.size], fact.needles, depths)
        questions.append(Question(f"{body}\n{fact.question}", fact.choices, fact.gold))
    return questions


def hide(passage: bytes, needles: Sequence[str], depths: Sequence[float]) -> str:
    """A passage with sentences put between its words.

    Args:
        depths: where each sentence stands, from 0 (first) to 1 (last).
    """
    text = passage.decode(errors="ignore").strip()  # a passage may begin or end within a character
    pieces, start = [], 0
    for depth, sentence in sorted(zip(depths, needles, strict=True)):
        at = _between_words(text, round(depth * len(text)))
        pieces += [text[start:at].strip(), sentence]
        start = at
    return " ".join(piece for piece in (*pieces, text[start:].strip()) if piece)


def _between_words(text: str, at: int) -> int:
    """The place nearest to `at` where no word is cut."""
    before, after = text.rfind(" ", 0, at + 1), text.find(" ", at)
    places = (max(before, 0), after if after >= 0 else len(text))
    return at if at in (0, len(text)) else min(places, key=lambda place: abs(place - at))
