from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.files import hashing
from evomerge.operators.training import corpus
from evomerge.operators.training.corpus import Row
from tests.helpers.family import make_tokenizer

EOS, A = 1, 4  # ids of the end token and of "a"


def write(folder: Path, name: str, *lines: object) -> Path:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_plain_text_is_cut_into_rows_that_overlap_by_a_token(tmp_path: Path) -> None:
    path = write(tmp_path, "letters.txt", "abcde")
    assert corpus.rows(path, make_tokenizer(), 3) == [Row((A, A + 1, A + 2), 1), Row((A + 2, A + 3, A + 4), 1)]
    assert corpus.documents(path) == ["abcde"]


def test_a_line_is_a_row_with_an_end_and_a_prompt_is_not_learned(tmp_path: Path) -> None:
    path = write(tmp_path, "letters.jsonl", {"text": "ab"}, "", {"prompt": "b=", "completion": "ca"})
    assert corpus.rows(path, make_tokenizer(), 8) == [
        Row((A, A + 1, EOS), 1),
        Row((A + 1, 3, A + 2, A, EOS), 2),
    ]
    assert corpus.documents(path) == ["ab", "b=ca"]


def test_a_long_line_is_cut_and_its_prompts_rows_are_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, "letters.jsonl", {"prompt": "abcd", "completion": "ef"})
    assert corpus.rows(path, make_tokenizer(), 3) == [Row((A + 2, A + 3, A + 4), 2), Row((A + 4, A + 5, EOS), 1)]


def test_too_many_rows_are_thinned_evenly(tmp_path: Path) -> None:
    path = write(tmp_path, "letters.txt", "abcdefghij" * 10)
    every = corpus.rows(path, make_tokenizer(), 10)
    assert corpus.rows(path, make_tokenizer(), 10, most=4) == [every[n * len(every) // 4] for n in range(4)]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 12))
def test_every_token_is_learned_once(count: int, start: int, length: int) -> None:
    rows = corpus.cut(range(count), start, length)
    assert [token for row in rows for token in row.ids[row.start :]] == list(range(max(start, 1), count))
    assert all(1 <= row.start < len(row.ids) <= length for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "x", "neither .txt nor .jsonl"),
        ("a.txt", " \n", "holds no text"),
        ("a.txt", "a", "too short to learn from"),
        ("a.jsonl", "\n", "holds no text"),
        ("a.jsonl", '{"text": "a"}\n{"text"', "line 2: is not JSON"),
        ("a.jsonl", '["a"]', "line 1: must be"),
        ("a.jsonl", '{"text": 3}', "line 1: must be"),
        ("a.jsonl", '{"prompt": "a"}', "line 1: must be"),
        ("a.jsonl", '{"text": "a", "prompt": "b"}', "line 1: must be"),
        ("a.jsonl", '{"text": "a"}\n\n{"prompt": "a", "completion": ""}', "line 3: is empty"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, name: str, content: str, told: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ConfigError, match=told) as caught:
        corpus.rows(path, make_tokenizer(), 4)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_wrong_bytes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        corpus.texts(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        hashing.file_sha256(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(b"good\nb\xffd")
    with pytest.raises(ConfigError, match="line 2: is not UTF-8"):
        corpus.texts(tmp_path / "a.txt")


def test_line_ends_inside_strings_are_no_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\u2028b"}\r\n{"text": "c"}\n', encoding="utf-8")
    assert corpus.documents(path) == ["a\u2028b", "c"]


def test_epochs_have_orders_of_their_own() -> None:
    numbers = list(itertools.islice(corpus.endless(10, 0, "ants"), 30))
    epochs = [numbers[:10], numbers[10:20], numbers[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert numbers == list(itertools.islice(corpus.endless(10, 0, "ants"), 30))
    assert numbers != list(itertools.islice(corpus.endless(10, 0, "bees"), 30))
    assert numbers != list(itertools.islice(corpus.endless(10, 1, "ants"), 30))


def test_the_digest_tells_rows_apart() -> None:
    rows = [[Row((1, 2, 3), 1)], [Row((1, 2, 3), 2)], [Row((1, 2), 1), Row((2, 3), 1)], [Row((1, 2, 4), 1)]]
    assert len({corpus.digest(one) for one in rows}) == len(rows)
