"""Small skills on strings and numbers, which the demo's models learn, and the documents that test them.

A task is one line of text, the answer after the equals sign:

    reverse(hbkd)=dkbh        the letters from back to front
    sort(hbkd)=bdhk           the letters in order of the alphabet
    double(4716)=09432        twice the number, with one digit more

Everything is a pure function of its arguments: the same seed gives the same examples on every machine. The split
to which a prompt belongs is a function of its text alone. So training examples, search documents and hold-out
documents can never share a prompt, whatever the seeds.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from evomerge.scoring.documents.questions import Question

Split = Literal["train", "search", "holdout"]

LETTERS = "abcdefghijklmnop"

DIGITS = "0123456789"

CHOICES = 4
"""Answers offered in one document, one of them right."""


@dataclass(frozen=True)
class Skill:
    """A rule that turns an argument into an answer.

    Attributes:
        draw: draws an argument.
        solve: the answer to an argument.
        alphabet: the characters of answers, in order: a near miss replaces one by its neighbour.
    """

    name: str
    draw: Callable[[random.Random], str]
    solve: Callable[[str], str]
    alphabet: str

    def prompt(self, argument: str) -> str:
        """The text before the answer, such as "sort(hbkd)="."""
        return f"{self.name}({argument})="


def _letters(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(5, 9)))


def _number(rng: random.Random) -> str:
    return "".join(rng.choice(DIGITS) for _ in range(rng.randint(4, 7)))


def _double(number: str) -> str:
    return f"{2 * int(number):0{len(number) + 1}d}"


SKILLS: dict[str, Skill] = {
    skill.name: skill
    for skill in (
        Skill("reverse", _letters, lambda text: text[::-1], LETTERS),
        Skill("sort", _letters, lambda text: "".join(sorted(text)), LETTERS),
        Skill("double", _number, _double, DIGITS),
    )
}


def split_of(prompt: str) -> Split:
    """The split that a prompt belongs to: one in eight for the search, one in eight held out, the rest to train."""
    bucket = zlib.crc32(prompt.encode()) % 8
    if bucket == 0:
        return "search"
    return "holdout" if bucket == 1 else "train"


def examples(skill: str, count: int, *, seed: int) -> list[tuple[str, str]]:
    """`count` training examples, each (prompt, answer). A prompt may come more than once."""
    rng = random.Random(f"train/{skill}/{seed}")
    drawn = _draw(SKILLS[skill], "train", rng)
    return [(prompt, answer) for _, (prompt, answer) in zip(range(count), drawn, strict=False)]


def documents(skill: str, split: Split, count: int, *, seed: int = 0) -> list[Question]:
    """`count` multiple-choice documents of a split, no prompt twice; the choices have equal lengths."""
    rng = random.Random(f"{split}/{skill}/{seed}")
    questions: dict[str, Question] = {}
    for prompt, answer in _draw(SKILLS[skill], split, rng):
        if prompt not in questions:
            choices = [answer, *near_misses(answer, SKILLS[skill].alphabet, CHOICES - 1, rng)]
            rng.shuffle(choices)
            questions[prompt] = Question(prompt, tuple(choices), choices.index(answer))
        if len(questions) == count:
            break
    return list(questions.values())


def near_misses(answer: str, alphabet: str, count: int, rng: random.Random) -> list[str]:
    """`count` distinct wrong answers, each one slip away from the right one.

    A slip exchanges two neighbouring characters, or replaces one by its neighbour in the alphabet.
    """
    slips: dict[str, None] = {}
    while len(slips) < count:
        place = rng.randrange(len(answer))
        slip = _swapped(answer, place) if rng.random() < 0.5 else _replaced(answer, place, alphabet, rng)
        if slip != answer:
            slips[slip] = None
    return list(slips)


def _draw(skill: Skill, split: Split, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Pairs (prompt, answer) of one split, without end."""
    while True:
        argument = skill.draw(rng)
        prompt = skill.prompt(argument)
        if split_of(prompt) == split:
            yield prompt, skill.solve(argument)


def _swapped(text: str, place: int) -> str:
    """The text with the characters at `place` and `place + 1` exchanged, or with its last two."""
    place = min(place, len(text) - 2)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def _replaced(text: str, place: int, alphabet: str, rng: random.Random) -> str:
    """The text with the character at `place` moved one step up or down the alphabet, around its ends."""
    step = rng.choice((-1, 1))
    moved = alphabet[(alphabet.index(text[place]) + step) % len(alphabet)]
    return text[:place] + moved + text[place + 1 :]
