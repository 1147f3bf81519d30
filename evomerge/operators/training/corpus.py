"""Files of texts as rows of tokens.

A `.txt` file is one text, cut into rows. Each line of a `.jsonl` file is a row of its own, cut where it is too
long: {"text": ...}, or {"prompt": ..., "completion": ...}, of which only the completion is learned. Lines end with
the tokenizer's end token.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigError
from evomerge.files.hashing import digest_of_json
from evomerge.models.known_tokens import unknown_token

SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True)
class Row:
    """A row of tokens. Those from `start` on are learned, each from all before it; `start` is at least 1."""

    ids: tuple[int, ...]
    start: int

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Text:
    """One text of a file. The prompt before it, which may be empty, is not learned."""

    prompt: str
    text: str


def fault(path: Path) -> str | None:
    """What is wrong with a file, as far as can be told without reading it; None if nothing is."""
    if path.suffix not in SUFFIXES:
        return f"{path} is neither {' nor '.join(SUFFIXES)}"
    return None if path.is_file() else f"there is no file {path}"


def texts(path: Path) -> list[Text]:
    """The texts in a file.

    Raises:
        ConfigError: the file cannot be read, or a line is no text; the message names the file and the line.
    """
    if wrong := fault(path):
        raise ConfigError(str(path), [wrong])
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(str(path), [f"line {line}: is not UTF-8"]) from error
    if path.suffix == ".txt":
        every = [Text("", content)] if content.strip() else []
    else:
        # Not splitlines, which takes characters for line ends that JSON allows in its strings.
        lines = enumerate(content.split("\n"), start=1)
        every = [_text(line, path, number) for number, line in lines if line.strip()]
    if not every:
        raise ConfigError(str(path), ["holds no text"])
    return every


def documents(path: Path) -> list[str]:
    """The texts in a file as plain strings, a prompt and its completion together.

    Raises:
        ConfigError: see `texts`.
    """
    return [one.prompt + one.text for one in texts(path)]


def rows(path: Path, tokenizer: Any, length: int, most: int | None = None) -> list[Row]:
    """The rows of a file, in its order.

    The rows of a text that is cut overlap by one token, so that every token but the first is learned.

    Args:
        length: tokens of the longest row.
        most: how many rows are taken at most, evenly spread; None takes all.

    Raises:
        ConfigError: see `texts`; or no row has two tokens.
    """
    end = [tokenizer.eos_token_id] if path.suffix == ".jsonl" and tokenizer.eos_token_id is not None else []
    every = []
    for one in texts(path):
        ids, learned_from = _tokens(one, tokenizer)
        if ids[-1:] != end:
            ids += end
        every += cut(ids, learned_from, length)
    if not every:
        raise ConfigError(str(path), ["is too short to learn from: no row has two tokens"])
    if most is not None and len(every) > most:
        every = [every[number * len(every) // most] for number in range(most)]
    return every


def check_tokens(path: Path, rows: Sequence[Row], tokenizer: Any, vocabulary: int) -> None:
    """Checks that a model has all tokens of a file's rows.

    Args:
        vocabulary: how many tokens the model has.

    Raises:
        ConfigError: naming the file and the token.
    """
    for row in rows:
        if (wrong := unknown_token(row.ids, vocabulary, tokenizer)) is not None:
            raise ConfigError(str(path), [wrong])


def _tokens(text: Text, tokenizer: Any) -> tuple[list[int], int]:
    """The tokens of a text with its prompt, and the place of the first one that is learned."""
    if not text.prompt:
        return [int(token) for token in tokenizer(text.text, verbose=False)["input_ids"]], 1
    prompt = [int(token) for token in tokenizer(text.prompt, verbose=False)["input_ids"]]
    prompt = _without_end(prompt, tokenizer)
    completion = tokenizer(text.text, add_special_tokens=False, verbose=False)["input_ids"]
    return [*prompt, *(int(token) for token in completion)], len(prompt)


def cut(ids: Sequence[int], start: int, length: int) -> list[Row]:
    """Cuts tokens into rows of at most `length`. The tokens from `start` on are learned, each in one row.

    >>> [row.ids for row in cut([1, 2, 3, 4, 5], 1, 3)]
    [(1, 2, 3), (3, 4, 5)]
    """
    firsts = range(0, max(len(ids) - 1, 0), length - 1)
    rows = [Row(tuple(ids[first : first + length]), max(start - first, 1)) for first in firsts]
    return [row for row in rows if row.learned > 0]


def order(count: int, epoch: int, *key: Any) -> list[int]:
    """The numbers below `count` in an order drawn from the epoch and a key."""
    return [int(number) for number in np.random.default_rng(entropy(*key, epoch)).permutation(count)]


def endless(count: int, *key: Any) -> Iterator[int]:
    """The numbers below `count` without end, in each epoch all of them in an order of its own."""
    for epoch in itertools.count():
        yield from order(count, epoch, *key)


def digest(rows: Sequence[Row]) -> str:
    """The sha256 of the rows' tokens, and of the places where learning starts in them."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(np.array([len(row.ids), row.start, *row.ids], dtype="<i8").tobytes())
    return whole.hexdigest()


def entropy(*key: Any) -> int:
    """A seed of 63 bits that depends on a key alone, the same on every machine."""
    return int(digest_of_json(key, default=str)[:16], 16) >> 1


def _text(line: str, path: Path, number: int) -> Text:
    """The text that a line of a `.jsonl` file holds.

    Raises:
        ConfigError: the line, of that number, is no text.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), [f"line {number}: is not JSON: {error}"]) from error
    keys = set(data) if isinstance(data, dict) else set()
    if keys not in ({"text"}, {"prompt", "completion"}) or not all(isinstance(v, str) for v in data.values()):
        wanted = '{"text": ...} or {"prompt": ..., "completion": ...}'
        raise ConfigError(str(path), [f"line {number}: must be {wanted}, with strings and no other keys"])
    if any("\ud800" <= sign <= "\udfff" for value in data.values() for sign in value):
        raise ConfigError(str(path), [f"line {number}: holds half of a surrogate pair, which is no text"])
    last = data.get("text", data.get("completion"))
    if not last:
        raise ConfigError(str(path), [f"line {number}: is empty"])
    return Text(data.get("prompt", ""), last)


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """A prompt's tokens without the end token that some tokenizers add."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
