"""Running texts that are at hand without a download, and passages that are cut from them."""

from __future__ import annotations

import functools
import math
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

Half = Literal["search", "holdout"]
"""The half of a text from which passages are taken."""

SECTORS = 8
"""The number of parts that a text is cut into; the halves take them in turn."""

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def read_text(text: str, folder: Path = Path()) -> bytes:
    """The bytes of a text, UTF-8; b"" for filler.

    Args:
        text: filler, python, kjv, or the path of a text file.
        folder: the folder that a path is relative to.

    Raises:
        ValueError: there is no such text, or it cannot be read.
    """
    if not isinstance(text, str):
        raise ValueError(f"text: is {text!r}; give python, kjv, filler or the path of a text file")
    if text == "filler":
        return b""
    if text in _NAMED:
        return _NAMED[text]()
    path = folder / Path(text).expanduser()
    try:
        return path.read_text(encoding="utf-8").encode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"text: {path} cannot be read: {reason}; python, kjv and filler are known") from error


@functools.cache
def _python() -> bytes:
    """The prose of the Python reference, a line for each paragraph: no code, no tables, no grammar."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError("text: this Python has no pydoc_data; give the path of a text file") from error
    paragraphs = [part for name in sorted(topics) for part in topics[name].split("\n\n")]
    lines = [" ".join(part.split()) for part in paragraphs]
    return "\n".join(line for line in lines if len(line) > 80 and line[0].isalpha() and line[-1] in ".:").encode()


@functools.cache
def _kjv() -> bytes:
    """The King James Bible."""
    try:
        return subprocess.run(["bible", "Gen1:1-Rev22:21"], capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError("text: kjv needs the program `bible`: install Debian's package bible-kjv") from error


_NAMED: dict[str, Callable[[], bytes]] = {"python": _python, "kjv": _kjv}


def sectors(text: bytes, split: Half) -> list[bytes]:
    """The parts of a text that belong to a half."""
    edges = [len(text) * at // SECTORS for at in range(SECTORS + 1)]
    return [text[edges[at] : edges[at + 1]] for at in range(split == "holdout", SECTORS, 2)]


def passages(text: bytes, split: Half, size: int, count: int, rng: random.Random) -> list[bytes]:
    """`count` passages of `size` bytes from one half of a text, spread evenly, in random order.

    They overlap only where the half is too small for so many.

    Args:
        text: b"" stands for filler.

    Raises:
        ValueError: a part of the text is shorter than a passage.
    """
    if not text:
        return [(FILLER * (size // len(FILLER) + 1))[:size].encode()] * count
    parts = sectors(text, split)
    longest = min(len(part) for part in parts)
    if size > longest:
        fault = f"{size} bytes of text are wanted at once, but a passage of this one has {longest} at most"
        raise ValueError(f"length: {fault} ({len(text)} in {SECTORS} sectors); give a longer text or less length")
    starts = [part[at : at + size] for part in parts for at in _spread(len(part) - size, count, parts, rng)]
    return rng.sample(starts, count)


def _spread(room: int, count: int, parts: Sequence[bytes], rng: random.Random) -> list[int]:
    """Where passages start in one part of a text: one at random in each of equal stretches of [0, room].

    Each part has its share of `count` passages, rounded up.
    """
    share = math.ceil(count / len(parts))
    return [int((at + rng.random()) * (room + 1) / share) for at in range(share)]
