"""Finds training texts that hold a task's documents: scores on that task would tell of memory, not of skill.

A text holds a document if they have a run of 13 words in common, whatever their case and punctuation (GPT-3's
decontamination, Brown et al. 2020, arXiv 2005.14165, appendix C). So does a text with the whole document in it, if
that has 8 or more characters, however few its words. There punctuation counts, for it is all that tells some short
documents apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

RUN = 13  # words in common
SHORTEST = 8  # characters that a whole document has at least, spaces not counted

_EXAMPLES, _SHOWN = 3, 60  # documents that a message shows, and characters of each
_PREFIX = 3  # signs by which whole documents are looked up
_WORDS, _SIGNS = re.compile(r"\w+"), re.compile(r"\w+|[^\w\s]")


def shared(texts: Iterable[str], reserved: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks whose documents the training texts hold, one line each; [] if there are none.

    A line says how many documents of the task they hold, and shows the first of them.

    Args:
        texts: the training texts.
        reserved: task -> its documents.
    """
    runs: dict[int, set[tuple[str, int]]] = defaultdict(set)
    wholes: dict[int, set[tuple[str, int]]] = defaultdict(set)
    lengths: dict[int, set[int]] = defaultdict(set)  # first signs of whole documents -> how long those are
    for task, documents in reserved.items():
        for number, document in enumerate(documents):
            for run in _runs(_WORDS.findall(document.lower()), RUN):
                runs[run].add((task, number))
            signs = _SIGNS.findall(document.lower())
            if sum(map(len, signs)) >= SHORTEST:
                wholes[_hash(signs)].add((task, number))
                lengths[_hash(signs[:_PREFIX])].add(len(signs))
    held: dict[str, set[int]] = defaultdict(set)
    for text in texts:
        hits = [runs[run] for run in _runs(_WORDS.findall(text.lower()), RUN) if run in runs]
        hits += _held(_SIGNS.findall(text.lower()), wholes, lengths)
        for task, number in (one for hit in hits for one in hit):
            held[task].add(number)
    return [_line(task, sorted(numbers), reserved[task]) for task, numbers in sorted(held.items())]


def _held(
    signs: Sequence[str], wholes: Mapping[int, set[tuple[str, int]]], lengths: Mapping[int, set[int]]
) -> Iterator[set[tuple[str, int]]]:
    """The tasks and numbers of the whole documents that stand anywhere in a text.

    Args:
        signs: the text's words and punctuation marks.
        wholes: hash of a document's signs -> the documents.
        lengths: hash of a document's first signs -> how many signs such documents have.
    """
    for first in range(len(signs)):
        for prefix in range(1, _PREFIX + 1):
            for length in lengths.get(_hash(signs[first : first + prefix]), ()):
                whole = _hash(signs[first : first + length])
                if first + length <= len(signs) and whole in wholes:
                    yield wholes[whole]


def _runs(words: Sequence[str], length: int) -> Iterator[int]:
    """The hashes of all runs of `length` words."""
    return (_hash(words[first : first + length]) for first in range(len(words) - length + 1))


def _hash(words: Sequence[str]) -> int:
    return hash(" ".join(words))


def _line(task: str, numbers: Sequence[int], documents: Sequence[str]) -> str:
    """The line that says which of a task's documents the training texts hold."""
    examples = ", ".join(repr(_short(documents[number])) for number in numbers[:_EXAMPLES])
    verb = "is" if len(numbers) == 1 else "are"
    return f"{task}: {len(numbers)} of its {len(documents)} documents {verb} in the training texts, as {examples}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
