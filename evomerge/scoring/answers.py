"""A model's answers, kept on disk, so that no request is forwarded twice.

Answers are kept and not metrics: metrics follow from them exactly, at next to no cost, and may change. An answer is
found by a digest of its request, which covers everything that the model is shown.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evomerge.files.writing import replacing

DIGEST = 16  # bytes of a request's digest

SAVE_EVERY = 10.0  # seconds between two writes of a call under way

VERSION = 1  # goes up when a file, or a request's digest, means something else


class KeptAnswer(NamedTuple):
    """The answer to one request, as it is kept.

    Attributes:
        logprob: the summed log-probability of its tokens, finite; NaN for free text.
        greedy: whether each of its tokens is the most likely one.
        text: free text; "" for a log-likelihood.
        tokens: how many tokens were generated.
        finished: whether free text ended before its greatest length; True for a log-likelihood.
    """

    logprob: float
    greedy: bool
    text: str
    tokens: int
    finished: bool


class Answers:
    """The answers of one model, in FOLDER/KEY.npz.

        answers = Answers(folder, recipe.sha256)
        done = answers.begin(call)
        for batch in plan(requests - answers.finished):
            if not batch <= done:
                answers.add(forward(batch))
        answers.end()

    The last bits of an answer depend on the other rows of its batch. So the answers of an interrupted call are kept
    apart: the call, begun again, makes the same batches, skips those that it had finished, and ends with the same
    bits.

    A damaged file counts as empty. A disk that does not take the file costs the kept answers and nothing else: from
    then on they stay in memory.

    Args:
        folder: made if missing; None keeps all answers in memory.
        key: names the model: its weights, and all else that rounds its answers. Part of a file name.

    Attributes:
        finished: digest of a request, `DIGEST` bytes -> its answer, for the calls that came to their end.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.finished: dict[bytes, KeptAnswer] = {}
        self._path = None if folder is None else folder / f"{key}.npz"
        self._key = key
        self._call = b""
        self._running: dict[bytes, KeptAnswer] = {}
        self._changed = False
        self._saved = time.monotonic()
        if self._path is not None:
            self._load(self._path)

    def begin(self, call: bytes) -> dict[bytes, KeptAnswer]:
        """Begins a call, and returns its answers so far if it is the call that was interrupted.

        The answers of an interrupted call with another digest become `finished`.

        Args:
            call: a digest of all its requests and of how they are batched; not empty.
        """
        if call != self._call:
            self._finish()
            self._call = call
        self._saved = time.monotonic()
        return dict(self._running)

    def add(self, new: Mapping[bytes, KeptAnswer]) -> None:
        """Adds answers to the call under way. Writes them if the last write was `SAVE_EVERY` seconds ago."""
        self._running.update(new)
        self._changed = True
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self._save()

    def end(self) -> None:
        """Ends the call: its answers become `finished`, and are written."""
        self._finish()
        if self._changed:
            self._save()

    def _finish(self) -> None:
        self._changed |= bool(self._running)
        self.finished.update(self._running)
        self._call, self._running = b"", {}

    def _save(self) -> None:
        self._changed = False
        if self._path is None:
            return
        try:
            with replacing(self._path) as aside:
                aside.write_bytes(self._packed())
        except OSError:
            # Whoever keeps results of value meets the same disk and says so; its room is better left to them.
            self._path = None
        self._saved = time.monotonic()

    def _packed(self) -> bytes:
        digests = [*self.finished, *self._running]
        answers = [*self.finished.values(), *self._running.values()]
        logprobs, greedy, texts, tokens, finished = zip(*answers, strict=True) if answers else ((),) * 5
        encoded = [text.encode(errors="surrogatepass") for text in texts]
        about = {"version": VERSION, "key": self._key, "call": self._call.hex(), "finished": len(self.finished)}
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            about=_bytes(json.dumps(about).encode()),
            digests=_bytes(b"".join(digests)).reshape(-1, DIGEST),
            logprobs=np.array(logprobs, dtype=np.float64),
            greedy=np.array(greedy, dtype=bool),
            tokens=np.array(tokens, dtype=np.int32),
            finished=np.array(finished, dtype=bool),
            ends=np.cumsum([len(text) for text in encoded], dtype=np.int64),
            texts=_bytes(b"".join(encoded)),
        )
        return buffer.getvalue()

    def _load(self, path: Path) -> None:
        if not path.is_file():
            return
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                about = json.loads(stored["about"].tobytes())
                if (about["version"], about["key"]) != (VERSION, self._key):
                    return
                rows = list(_rows(stored))
                call, count = bytes.fromhex(about["call"]), about["finished"]
        except Exception:  # whatever a damaged zip file raises
            return
        self.finished, self._running, self._call = dict(rows[:count]), dict(rows[count:]), call


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


def _rows(stored: Mapping[str, np.ndarray]) -> Iterator[tuple[bytes, KeptAnswer]]:
    blob, ends = stored["texts"].tobytes(), stored["ends"].tolist()
    texts = [blob[start:end].decode(errors="surrogatepass") for start, end in pairwise([0, *ends])]
    logprobs, greedy = stored["logprobs"].tolist(), stored["greedy"].tolist()
    tokens, finished = stored["tokens"].tolist(), stored["finished"].tolist()
    answers = zip(stored["digests"], logprobs, greedy, texts, tokens, finished, strict=True)
    return ((digest.tobytes(), KeptAnswer(*answer)) for digest, *answer in answers)
