"""What is kept of a model's answers: whole, apart while a call is under way, and never in the way."""

import math
import resource
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.scoring import answers as module
from evomerge.scoring.answers import DIGEST, Answers, KeptAnswer

CALL, OTHER = b"c" * DIGEST, b"o" * DIGEST


def digest(number):
    return bytes([number]) * DIGEST


def likelihood(logprob):
    return KeptAnswer(logprob, greedy=logprob > -1, text="", tokens=0, finished=True)


def some(*numbers):
    return {digest(number): likelihood(-number / 7) for number in numbers}


@pytest.fixture
def eager(monkeypatch):
    """Each `add` is written at once."""
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)


def same(first, second):
    """Whether two answers are equal to the last bit; NaN is."""
    numbers = np.array([first.logprob, second.logprob]).view(np.int64)
    return numbers[0] == numbers[1] and first[1:] == second[1:]


LIKELIHOODS = st.builds(
    KeptAnswer,
    st.floats(max_value=0.0, allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.just(""),
    st.just(0),
    st.just(True),
)
GENERATIONS = st.builds(
    KeptAnswer,
    st.just(math.nan),
    st.just(False),
    st.text(st.characters(codec=None)),
    st.integers(0, 2**31 - 1),
    st.booleans(),
)


@given(st.dictionaries(st.binary(min_size=DIGEST, max_size=DIGEST), LIKELIHOODS | GENERATIONS, max_size=20))
def test_answers_come_back_to_the_last_bit(new):
    with tempfile.TemporaryDirectory() as folder:
        written = Answers(Path(folder), "key")
        written.begin(CALL)
        written.add(new)
        written.end()
        again = Answers(Path(folder), "key").finished
    assert list(again) == list(new)
    assert all(same(again[one], new[one]) for one in new)


@pytest.mark.parametrize("text", ["naïve ∀ 猫 🐈", "\ud83d", "\ud83d\ude00", "a\x00b", "\udc80 broken"])
def test_any_text_comes_back(tmp_path, text):
    # A lone high surrogate before a lone low one must not become a pair.
    new = {
        digest(k): KeptAnswer(math.nan, False, one, 3, False) for k, one in enumerate(["\ud83d", text, "\ude00"])
    }
    written = Answers(tmp_path, "key")
    written.begin(CALL)
    written.add(new)
    written.end()
    assert [one.text for one in Answers(tmp_path, "key").finished.values()] == ["\ud83d", text, "\ude00"]


def test_an_interrupted_call_goes_on_where_it_was(tmp_path, eager):
    first = Answers(tmp_path, "key")
    first.begin(OTHER)
    first.add(some(1))
    first.end()
    assert first.begin(CALL) == {}
    first.add(some(2))
    first.add(some(3))  # and here the process is killed
    second = Answers(tmp_path, "key")
    assert second.finished == some(1), "what is under way must not change the batches"
    assert second.begin(CALL) == some(2, 3)
    second.add(some(4))
    second.end()
    assert second.finished == some(1, 2, 3, 4)
    assert Answers(tmp_path, "key").finished == some(1, 2, 3, 4)
    assert Answers(tmp_path, "key").begin(CALL) == {}


def test_what_an_interrupted_call_left_serves_other_calls(tmp_path, eager):
    first = Answers(tmp_path, "key")
    first.begin(CALL)
    first.add(some(1, 2))
    second = Answers(tmp_path, "key")
    assert second.begin(OTHER) == {}
    assert second.finished == some(1, 2)
    second.end()
    assert Answers(tmp_path, "key").finished == some(1, 2)


def test_what_begin_gives_does_not_grow_with_the_call():
    kept = Answers(None, "key")
    kept.begin(CALL)
    kept.add(some(1))
    done = kept.begin(CALL)
    kept.add(some(2))
    assert done == some(1)


def test_a_call_is_written_now_and_then(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("evomerge.scoring.answers.time.monotonic", lambda: now[0])
    kept = Answers(tmp_path, "key")
    kept.begin(CALL)
    kept.add(some(1))
    now[0] += module.SAVE_EVERY / 2
    kept.add(some(2))
    assert not (tmp_path / "key.npz").exists()
    now[0] += module.SAVE_EVERY / 2
    kept.add(some(3))
    kept.add(some(4))
    assert Answers(tmp_path, "key").begin(CALL) == some(1, 2, 3)


def test_a_call_with_nothing_new_writes_nothing(tmp_path):
    kept = Answers(tmp_path, "key")
    kept.begin(CALL)
    kept.end()
    assert not list(tmp_path.iterdir())


def test_models_do_not_share_answers(tmp_path):
    kept = Answers(tmp_path, "key")
    kept.begin(CALL)
    kept.add(some(1))
    kept.end()
    assert [path.name for path in tmp_path.iterdir()] == ["key.npz"]
    assert Answers(tmp_path, "kez").finished == {}
    (tmp_path / "key.npz").rename(tmp_path / "kez.npz")
    assert Answers(tmp_path, "kez").finished == {}


def test_without_a_folder_answers_stay_in_memory(eager):
    kept = Answers(None, "key")
    kept.begin(CALL)
    kept.add(some(1))
    kept.end()
    assert kept.finished == some(1)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign", "version"])
def test_a_damaged_file_counts_as_empty(tmp_path, monkeypatch, damage):
    if damage == "version":
        monkeypatch.setattr(module, "VERSION", module.VERSION - 1)
    path = tmp_path / "key.npz"
    kept = Answers(tmp_path, "key")
    kept.begin(CALL)
    kept.add(some(*range(1, 9)))
    kept.end()
    monkeypatch.undo()
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-40])
    elif damage == "flip":
        data[data.index(b"digests.npy") + 200] ^= 0xFF
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        np.savez(path, digests=np.zeros((1, DIGEST), np.uint8))
    again = Answers(tmp_path, "key")
    assert again.finished == {}
    assert again.begin(CALL) == {}
    again.add(some(1))
    again.end()
    assert Answers(tmp_path, "key").finished == some(1)


def test_a_folder_that_cannot_be_made_costs_nothing_else(tmp_path, eager):
    (tmp_path / "file").write_text("in the way")
    kept = Answers(tmp_path / "file" / "answers", "key")
    kept.begin(CALL)
    kept.add(some(1))
    kept.add(some(2))
    kept.end()
    assert kept.finished == some(1, 2)


def test_a_full_disk_costs_nothing_else_and_leaves_nothing(tmp_path, eager):
    kept = Answers(tmp_path, "key")
    kept.begin(CALL)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        kept.add(some(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
    kept.end()
    assert kept.finished == some(1)
    assert not list(tmp_path.iterdir())
