"""Documents that only a model of a long context answers; `fitness/long_context.yaml` scores them.

    passkey    which number was hidden somewhere in filler? Ten choices
    needle     which fact was hidden somewhere in running text, with others like it? Ten choices
    long_tail  how likely is the end of a passage, after more or less of the text before it?

Retrieval and perplexity disagree: a model may find every number and have forgotten how to read, and the other way
round. A fitness should have both.

Lengths are bytes of UTF-8, question and answer included, because a task's data has no tokenizer. A token is a byte
or more, so that a document of `length` bytes has at most about `length` tokens; of English, a quarter of that.

Texts:

    filler  five sentences, over and over; cheap, because prompts share their beginnings
    python  the prose of the Python reference that every Python carries (pydoc_data); it differs between versions
    kjv     the King James Bible, from the program `bible` of Debian's package bible-kjv
    a path  a file of yours, plain text in UTF-8; relative to the folder of the tasks

A text is cut into eight sectors. The search takes its passages from the odd sectors and the hold-out from the even
ones, at any length. Everything is a pure function of its arguments and of the text.
"""

from __future__ import annotations

import difflib
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evomerge.scoring.documents.hiding import HiddenFact, hidden_questions
from evomerge.scoring.documents.options import common_faults, refuse, whole_number_fault
from evomerge.scoring.documents.questions import Question
from evomerge.scoring.documents.texts import Half, passages, read_text

CHOICES = 10
"""Answers offered in one document."""

CITIES = (
    *("Lisbon", "Oslo", "Cairo", "Lima", "Delhi", "Quito", "Tunis", "Seoul", "Dakar", "Hanoi"),
    *("Prague", "Havana", "Athens", "Bogota", "Nairobi", "Warsaw", "Dublin", "Manila", "Lagos", "Vienna"),
)

THINGS = (
    *("salt", "ginger", "honey", "pepper", "garlic", "lemon", "butter", "mint", "cocoa", "vinegar"),
    *("basil", "cinnamon", "saffron", "mustard", "almond", "coconut", "onion", "rice", "olive", "cheese"),
)


@dataclass(frozen=True)
class Ending:
    """A text, and how it continues."""

    context: str
    tail: str


def passkey(
    length: int,
    count: int = 100,
    depth: float | str = "random",
    seed: int = 0,
    split: Half = "search",
    text: str | None = None,
    digits: int = 5,
    folder: Path = Path(),
) -> list[Question]:
    """Questions for a number that is hidden in filler.

    Mohtashami and Jaggi 2023, "Landmark attention", arXiv 2305.16300.

    Args:
        length: bytes of a document.
        depth: where the number stands, from 0 (first) to 1 (last), or "random".
        text: the text that hides it; None: filler.
        digits: how many a number has; with one digit all ten numbers are the choices.
        folder: the folder that a path is relative to.
    """
    refuse(
        *common_faults(count, seed, split, depth),
        whole_number_fault("length", length, 1),
        whole_number_fault("digits", digits, 1, most=12),
    )
    rng = random.Random(f"passkey/{split}/{seed}")
    facts = []
    for _ in range(count):
        keys = rng.sample(range(10**digits), CHOICES)
        if digits == 1:
            keys.sort()
        choices = tuple(f" {key:0{digits}d}" for key in keys)
        gold = rng.randrange(CHOICES)
        facts.append(HiddenFact([f"The pass key is{choices[gold]}."], "The pass key is", choices, gold))
    return hidden_questions(facts, length, depth, rng, read_text("filler" if text is None else text, folder), split)


def needle(
    length: int,
    count: int = 100,
    depth: float | str = "random",
    distractors: int = 3,
    seed: int = 0,
    split: Half = "search",
    text: str | None = None,
    folder: Path = Path(),
) -> list[Question]:
    """Questions for a fact that is hidden in running text, among others of its kind.

    The others mislead a model that only looks for the kind. Hsieh et al. 2024, "RULER", arXiv 2404.06654: NIAH with
    several keys.

    Args:
        length: bytes of a document.
        depth: where the fact stands, from 0 (first) to 1 (last), or "random"; the others are anywhere.
        distractors: how many others; the things that they name are among the choices.
        text: the text that hides it; None: python.
        folder: the folder that a path is relative to.
    """
    refuse(
        *common_faults(count, seed, split, depth),
        whole_number_fault("length", length, 1),
        whole_number_fault("distractors", distractors, 0, most=CHOICES - 1),
    )
    rng = random.Random(f"needle/{split}/{seed}")
    cities = CITIES[split == "holdout" :: 2]
    facts = []
    for _ in range(count):
        places, things = rng.sample(cities, distractors + 1), rng.sample(THINGS, CHOICES)
        subjects = [f"The secret ingredient of {place}" for place in places]
        needles = [f"{subject} is {thing}." for subject, thing in zip(subjects, things, strict=False)]
        choices = [f" {thing}" for thing in things]
        right = choices[0]
        rng.shuffle(choices)
        facts.append(HiddenFact(needles, f"{subjects[0]} is", tuple(choices), choices.index(right)))
    return hidden_questions(facts, length, depth, rng, read_text("python" if text is None else text, folder), split)


def long_tail(
    context: int,
    tail: int = 256,
    longest: int | None = None,
    count: int = 50,
    seed: int = 0,
    split: Half = "search",
    text: str | None = None,
    folder: Path = Path(),
) -> list[Ending]:
    """The same ends of passages after more or less context, so that only the context makes a difference.

    Args:
        context: bytes before the tail.
        tail: bytes to predict; a few less in fact, because the tail begins with a word.
        longest: the greatest context after which the same tails are asked; give all tasks of one series the same.
            None: `context`.
        text: the text that passages are taken from; None: python.
        folder: the folder that a path is relative to.
    """
    faults = [
        *common_faults(count, seed, split),
        whole_number_fault("context", context, 1),
        whole_number_fault("tail", tail, 32),
    ]
    if longest is not None and not any(faults):
        faults.append(whole_number_fault("longest", longest, context))
    if text == "filler":
        faults.append("text: long_tail needs running text; filler says the same again")
    refuse(*faults)
    rng = random.Random(f"long_tail/{split}/{seed}")
    before = longest or context
    parts = passages(read_text(text or "python", folder), split, before + tail, count, rng)
    return [_ending(passage, before, context) for passage in parts]


def _ending(passage: bytes, before: int, context: int) -> Ending:
    """A passage cut near `before` bytes, its context shortened to `context` bytes.

    lm-eval takes blanks at a context's end for the answer's, so the tail begins with a blank, after a word.
    """
    at = before
    while at < len(passage) and not (passage[at : at + 1].isspace() and not passage[at - 1 : at].isspace()):
        at += 1
    if at == len(passage):  # the passage has no blank: a text without words
        at = before
    start = max(0, at - context)
    return Ending(passage[start:at].decode(errors="ignore"), passage[at:].decode(errors="ignore"))


MAKERS: dict[str, Callable[..., Sequence[Question | Ending]]] = {
    "passkey": passkey,
    "needle": needle,
    "long_tail": long_tail,
}
"""The kinds of document, by name."""


def rows(kind: str, given: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The documents of one of `MAKERS` as plain values.

    Args:
        given: what lm-eval passes: `dataset_kwargs` and the task's `metadata`, in one. A name that is no option is
            taken for metadata, unless it looks like a misspelt option.
        folder: the folder that paths are relative to.

    Raises:
        ValueError: all that is wrong with the options, in one line.
    """
    known = [name for name in inspect.signature(MAKERS[kind]).parameters if name != "folder"]
    required = "context" if kind == "long_tail" else "length"
    near = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.8) for name in given if name not in known}
    faults = [f"{name}: is no option; did you mean {meant[0]!r}?" for name, meant in near.items() if meant]
    refuse(*faults, f"{required}: is missing; give bytes" if required not in given else None)
    options = {name: value for name, value in given.items() if name in known}
    return [asdict(document) for document in MAKERS[kind](**options, folder=folder)]
