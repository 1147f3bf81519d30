"""Training texts that hold a task's documents: scores on that task would be of memory, not of skill.

After GPT-3's decontamination (Brown et al. 2020, arXiv 2005.14165, appendix C): a run of 13 words in common,
without case and punctuation. Besides, a whole document of 8 or more characters, however few its words; there
punctuation counts, for it is all that tells some short documents apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

RUN = 13  # words


SHORTEST = 8  # characters of a document, without spaces around its signs


_EXAMPLES, _SHOWN = 3, 60


_PREFIX = 3  # signs by which whole documents are looked up


_WORDS, _SIGNS = re.compile(r"\w+"), re.compile(r"\w+|[^\w\s]")


def shared(texts: Iterable[str], reserved: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks whose documents training texts hold, one a line, with how many and the first of them; [] if none.

    Args:
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
    found: dict[str, set[int]] = defaultdict(set)
    for text in texts:
        hits = [runs[run] for run in _runs(_WORDS.findall(text.lower()), RUN) if run in runs]
        hits += _held(_SIGNS.findall(text.lower()), wholes, lengths)
        for task, number in (one for hit in hits for one in hit):
            found[task].add(number)
    return [_line(task, sorted(numbers), reserved[task]) for task, numbers in sorted(found.items())]


def _held(
    signs: Sequence[str], wholes: Mapping[int, set[tuple[str, int]]], lengths: Mapping[int, set[int]]
) -> Iterator[set[tuple[str, int]]]:
    """Whole documents that stand anywhere in a text."""
    for first in range(len(signs)):
        for prefix in range(1, _PREFIX + 1):
            for length in lengths.get(_hash(signs[first : first + prefix]), ()):
                whole = _hash(signs[first : first + length])
                if first + length <= len(signs) and whole in wholes:
                    yield wholes[whole]


def _runs(words: Sequence[str], length: int) -> Iterator[int]:
    return (_hash(words[first : first + length]) for first in range(len(words) - length + 1))


def _hash(words: Sequence[str]) -> int:
    return hash(" ".join(words))


def _line(task: str, numbers: Sequence[int], documents: Sequence[str]) -> str:
    examples = ", ".join(repr(_short(documents[number])) for number in numbers[:_EXAMPLES])
    verb = "is" if len(numbers) == 1 else "are"
    return f"{task}: {len(numbers)} of its {len(documents)} documents {verb} in the training texts, as {examples}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
