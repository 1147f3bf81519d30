from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.files import hashing


def test_the_digest_of_a_value_does_not_depend_on_the_order_of_its_keys() -> None:
    assert hashing.digest_of_json({"b": [1.5, None], "a": "ä"}) == hashing.digest_of_json(
        {"a": "ä", "b": (1.5, None)}
    )
    assert hashing.digest_of_json({"a": 1}) == hashlib.sha256(b'{"a": 1}').hexdigest()


def test_a_place_may_write_json_in_its_own_style() -> None:
    compact = hashing.digest_of_json({"a": [1, 2]}, separators=(",", ":"))
    assert compact == hashlib.sha256(b'{"a":[1,2]}').hexdigest()
    assert hashing.digest_of_json([Path("x")], default=str) == hashing.digest_of_json(["x"])


def test_a_file_is_hashed_by_its_bytes_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    assert hashing.file_sha256(tmp_path / "x") == hashlib.sha256(b"content").hexdigest()
    with pytest.raises(ConfigError, match=r"missing: cannot be read: No such file"):
        hashing.file_sha256(tmp_path / "missing")
