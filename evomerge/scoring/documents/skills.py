"""Small skills on strings and numbers: what the demo's models learn, and the documents that test them.

A task is one line of text, the answer after the equals sign:

    reverse(hbkd)=dkbh        the letters from back to front
    sort(hbkd)=bdhk           the letters in order of the alphabet
    double(4716)=09432        twice the number, with one digit more

Everything is a pure function of its arguments: the same seed gives the same examples on every machine. The split
a prompt belongs to is a function of its text alone, so training examples, search documents and hold-out documents
can never share a prompt, whatever the seeds.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "search", "holdout"]

LETTERS = "abcdefghijklmnop"


DIGITS = "0123456789"


CHOICES = 4


"""Answers offered per document, one of them right."""


@dataclass(frozen=True)
class Skill:
    """A rule that turns an argument into an answer, and how arguments are drawn."""

    name: str
    draw: Callable[[random.Random], str]
    solve: Callable[[str], str]
    alphabet: str
    """The characters of answers, in order: a near miss replaces one by its neighbour."""

    def prompt(self, argument: str) -> str:
        return f"{self.name}({argument})="


@dataclass(frozen=True)
class Document:
    """One multiple-choice question. The choices are distinct, of equal length, and `choices[gold]` is right."""

    prompt: str
    choices: tuple[str, ...]
    gold: int


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


def documents(skill: str, split: Split, count: int, *, seed: int = 0) -> list[Document]:
    """`count` multiple-choice documents of a split, no prompt twice."""
    rng = random.Random(f"{split}/{skill}/{seed}")
    found: dict[str, Document] = {}
    for prompt, answer in _draw(SKILLS[skill], split, rng):
        if prompt not in found:
            choices = [answer, *near_misses(answer, SKILLS[skill].alphabet, CHOICES - 1, rng)]
            rng.shuffle(choices)
            found[prompt] = Document(prompt, tuple(choices), choices.index(answer))
        if len(found) == count:
            break
    return list(found.values())


def near_misses(answer: str, alphabet: str, count: int, rng: random.Random) -> list[str]:
    """`count` distinct wrong answers, each one slip away from the right one.

    A slip exchanges two neighbouring characters, or replaces one by its neighbour in the alphabet.
    """
    found: dict[str, None] = {}
    while len(found) < count:
        place = rng.randrange(len(answer))
        slip = _swapped(answer, place) if rng.random() < 0.5 else _replaced(answer, place, alphabet, rng)
        if slip != answer:
            found[slip] = None
    return list(found)


def _draw(skill: Skill, split: Split, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(prompt, answer) without end, of one split."""
    while True:
        argument = skill.draw(rng)
        prompt = skill.prompt(argument)
        if split_of(prompt) == split:
            yield prompt, skill.solve(argument)


def _swapped(text: str, place: int) -> str:
    """The characters at `place` and after it exchanged; the last one changes places with the one before it."""
    place = min(place, len(text) - 2)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def _replaced(text: str, place: int, alphabet: str, rng: random.Random) -> str:
    """The character at `place` moved one step up or down the alphabet, around its ends."""
    step = rng.choice((-1, 1))
    moved = alphabet[(alphabet.index(text[place]) + step) % len(alphabet)]
    return text[:place] + moved + text[place + 1 :]
