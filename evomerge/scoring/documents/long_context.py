"""Documents that only a model of a long context answers: what `fitness/long_context.yaml` asks.

    passkey    a number hidden somewhere in filler; which was it? Ten choices
    needle     a fact hidden somewhere in running text, with others like it; ten choices
    long_tail  the end of a passage, after more or less of what goes before it: how likely is it?

Retrieval and perplexity disagree: a model may find every number and have forgotten how to read, and the other way
round. A fitness wants both.

Lengths are bytes of UTF-8, question and answer included, because a task's data has no tokenizer. A token is a byte
or more, so that a document of `length` bytes has at most about `length` tokens; of English, a quarter of that.

Texts:

    filler  five sentences, over and over: the search shares the beginnings of its prompts, which is cheap
    python  the prose of the Python reference that every Python carries (pydoc_data); each version has an edition
    kjv     the King James Bible, by the program `bible` of Debian's package bible-kjv
    a path  a file of yours, plain text in UTF-8; relative to the folder of the tasks

A text is cut into eight sectors, and the search takes its passages from the odd ones, the hold-out from the even
ones, at whatever length. Everything is a pure function of its arguments, and of the text.
"""

from __future__ import annotations

import difflib
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from evomerge.scoring.documents.texts import Split, passages, read_text

CHOICES = 10


CITIES = (
    *("Lisbon", "Oslo", "Cairo", "Lima", "Delhi", "Quito", "Tunis", "Seoul", "Dakar", "Hanoi"),
    *("Prague", "Havana", "Athens", "Bogota", "Nairobi", "Warsaw", "Dublin", "Manila", "Lagos", "Vienna"),
)


THINGS = (
    *("salt", "ginger", "honey", "pepper", "garlic", "lemon", "butter", "mint", "cocoa", "vinegar"),
    *("basil", "cinnamon", "saffron", "mustard", "almond", "coconut", "onion", "rice", "olive", "cheese"),
)


@dataclass(frozen=True)
class Question:
    """Which of the choices is right after the prompt. The choices are distinct; `choices[gold]` is right."""

    prompt: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Ending:
    """A text, and how it goes on."""

    context: str
    tail: str


def passkey(
    length: int,
    count: int = 100,
    depth: float | str = "random",
    seed: int = 0,
    split: Split = "search",
    text: str | None = None,
    digits: int = 5,
    folder: Path = Path(),
) -> list[Question]:
    """A number hidden in filler (Mohtashami and Jaggi 2023, "Landmark attention", arXiv 2305.16300).

    Args:
        length: bytes of a document.
        depth: where the number stands, from 0 (first) to 1 (last), or "random".
        text: what it is hidden in; None: filler.
        digits: of a number; of one digit all ten are the choices.
        folder: that a path is relative to.
    """
    _refuse(*_common(count, depth, seed, split), _whole("length", length, 1), _whole("digits", digits, 1, most=12))
    rng = random.Random(f"passkey/{split}/{seed}")
    made = []
    for _ in range(count):
        keys = rng.sample(range(10**digits), CHOICES)
        if digits == 1:
            keys.sort()
        choices = tuple(f" {key:0{digits}d}" for key in keys)
        gold = rng.randrange(CHOICES)
        made.append(([f"The pass key is{choices[gold]}."], "The pass key is", choices, gold))
    return _hidden(made, length, depth, rng, read_text("filler" if text is None else text, folder), split)


def needle(
    length: int,
    count: int = 100,
    depth: float | str = "random",
    distractors: int = 3,
    seed: int = 0,
    split: Split = "search",
    text: str | None = None,
    folder: Path = Path(),
) -> list[Question]:
    """A fact hidden in running text, and others of its kind that mislead a model which only looks for the kind
    (Hsieh et al. 2024, "RULER", arXiv 2404.06654: NIAH with several keys).

    Args:
        length: bytes of a document.
        depth: where the fact stands, from 0 (first) to 1 (last), or "random"; the others are anywhere.
        distractors: how many others; what they name is among the choices.
        text: what it is hidden in; None: python.
        folder: that a path is relative to.
    """
    _refuse(
        *_common(count, depth, seed, split),
        _whole("length", length, 1),
        _whole("distractors", distractors, 0, most=CHOICES - 1),
    )
    rng = random.Random(f"needle/{split}/{seed}")
    cities = CITIES[split == "holdout" :: 2]
    made = []
    for _ in range(count):
        places, things = rng.sample(cities, distractors + 1), rng.sample(THINGS, CHOICES)
        facts = [f"The secret ingredient of {place}" for place in places]
        needles = [f"{fact} is {thing}." for fact, thing in zip(facts, things, strict=False)]
        choices = [f" {thing}" for thing in things]
        right = choices[0]
        rng.shuffle(choices)
        made.append((needles, f"{facts[0]} is", tuple(choices), choices.index(right)))
    return _hidden(made, length, depth, rng, read_text("python" if text is None else text, folder), split)


def long_tail(
    context: int,
    tail: int = 256,
    longest: int | None = None,
    count: int = 50,
    seed: int = 0,
    split: Split = "search",
    text: str | None = None,
    folder: Path = Path(),
) -> list[Ending]:
    """The same ends of passages after more or less context, so that only the context makes a difference.

    Args:
        context: bytes before the tail.
        tail: bytes to predict; a few less, because it begins with a word.
        longest: the greatest context that the same tails are asked after: give all tasks of one series the same.
            None: `context`.
        text: None: python.
        folder: that a path is relative to.
    """
    faults = [*_common(count, "random", seed, split), _whole("context", context, 1), _whole("tail", tail, 32)]
    if longest is not None and not any(faults):
        faults.append(_whole("longest", longest, context))
    if text == "filler":
        faults.append("text: long_tail needs running text; filler says the same again")
    _refuse(*faults)
    rng = random.Random(f"long_tail/{split}/{seed}")
    before = longest or context
    found = passages(read_text(text or "python", folder), split, before + tail, count, rng)
    return [_ending(passage, before, context) for passage in found]


MAKERS: dict[str, Callable[..., Sequence[Question | Ending]]] = {
    "passkey": passkey,
    "needle": needle,
    "long_tail": long_tail,
}


def rows(kind: str, given: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The documents of a kind as plain values.

    Args:
        given: what lm-eval passes: `dataset_kwargs` and the task's `metadata`, in one. What is no option of the
            kind is taken for metadata, unless it looks like one.
        folder: that paths are relative to.

    Raises:
        ValueError: all that is wrong with the options, in one line.
    """
    known = [name for name in inspect.signature(MAKERS[kind]).parameters if name != "folder"]
    required = "context" if kind == "long_tail" else "length"
    near = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.8) for name in given if name not in known}
    faults = [f"{name}: is no option; did you mean {found[0]!r}?" for name, found in near.items() if found]
    _refuse(*faults, f"{required}: is missing; give bytes" if required not in given else None)
    options = {name: value for name, value in given.items() if name in known}
    return [asdict(document) for document in MAKERS[kind](**options, folder=folder)]


# --- hiding ------------------------------------------------------------------------------------------------


def _hidden(
    made: Sequence[tuple[Sequence[str], str, tuple[str, ...], int]],
    length: int,
    depth: float | str,
    rng: random.Random,
    text: bytes,
    split: Split,
) -> list[Question]:
    """Questions of (needles, the one asked for first; question; choices; gold), with passages around them."""
    taken = [
        len(question) + 1 + max(map(len, choices)) + sum(len(needle) + 2 for needle in needles)
        for needles, question, choices, _ in made
    ]
    if length <= max(taken):
        raise ValueError(f"length: is {length}, but what is hidden and asked takes {max(taken)} bytes; give more")
    around = passages(text, split, length - min(taken), len(made), rng)
    found = []
    for (needles, question, choices, gold), passage, size in zip(made, around, taken, strict=True):
        depths = [rng.random() if depth == "random" else float(depth), *(rng.random() for _ in needles[1:])]
        body = hide(passage[: length - size], needles, depths)
        found.append(Question(f"{body}\n{question}", choices, gold))
    return found


def hide(passage: bytes, needles: Sequence[str], depths: Sequence[float]) -> str:
    """A passage with sentences put between its words. depths: of each, from 0 (first) to 1 (last)."""
    text = passage.decode(errors="ignore").strip()  # a passage may begin or end within a character
    pieces, start = [], 0
    for depth, sentence in sorted(zip(depths, needles, strict=True)):
        at = _between_words(text, round(depth * len(text)))
        pieces += [text[start:at].strip(), sentence]
        start = at
    return " ".join(piece for piece in (*pieces, text[start:].strip()) if piece)


def _between_words(text: str, at: int) -> int:
    """The nearest place to `at` where no word is cut."""
    before, after = text.rfind(" ", 0, at + 1), text.find(" ", at)
    places = (max(before, 0), after if after >= 0 else len(text))
    return at if at in (0, len(text)) else min(places, key=lambda place: abs(place - at))


def _ending(passage: bytes, before: int, context: int) -> Ending:
    """lm-eval takes blanks at a context's end for the answer's; so the tail begins with one, after a word."""
    at = before
    while at < len(passage) and not (passage[at : at + 1].isspace() and not passage[at - 1 : at].isspace()):
        at += 1
    if at == len(passage):  # no blank in it: a text without words
        at = before
    start = max(0, at - context)
    return Ending(passage[start:at].decode(errors="ignore"), passage[at:].decode(errors="ignore"))


# --- refusing ----------------------------------------------------------------------------------------------


def _refuse(*faults: str | None) -> None:
    found = [fault for fault in faults if fault]
    if found:
        raise ValueError("; ".join(found))


def _common(count: Any, depth: Any, seed: Any, split: Any) -> list[str | None]:
    number = isinstance(depth, int | float) and not isinstance(depth, bool) and 0 <= depth <= 1
    return [
        _whole("count", count, 1),
        None if number or depth == "random" else f"depth: is {depth!r}; give a number from 0 to 1, or random",
        _whole("seed", seed, 0),
        None if split in get_args(Split) else f"split: is {split!r}; give {' or '.join(get_args(Split))}",
    ]


def _whole(name: str, value: Any, least: int, most: int | None = None) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and value >= least and (most is None or value <= most):
        return None
    limit = f"{least} or more" if most is None else f"{least} to {most}"
    return f"{name}: is {value!r}; give a whole number, {limit}"
