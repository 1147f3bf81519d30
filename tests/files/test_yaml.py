"""YAML is read strictly, with merge keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.files import yaml


def read(text: str, folder: Path) -> dict[str, Any]:
    (folder / "file.yaml").write_text(text)
    return yaml.read_yaml(folder / "file.yaml")


def fault(text: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, folder)
    (line,) = caught.value.faults
    return line


def test_a_key_beside_a_merge_key_overrides_the_one_that_is_taken_over(tmp_path: Path) -> None:
    text = "one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}\nthree: {b: 4, <<: *one}\n"
    assert read(text, tmp_path) == {"one": {"a": 1, "b": 2}, "two": {"a": 1, "b": 3}, "three": {"a": 1, "b": 4}}


def test_of_several_mappings_the_first_one_wins(tmp_path: Path) -> None:
    text = "one: &one {a: 1}\ntwo: &two {a: 2, b: 2}\nboth: {<<: [*one, *two], c: 3}\n"
    assert read(text, tmp_path)["both"] == {"a": 1, "b": 2, "c": 3}


def test_mappings_that_took_over_keys_are_taken_over_themselves(tmp_path: Path) -> None:
    text = "one: &one {a: 1}\ntwo: &two {<<: *one, a: 2}\nthree: {<<: *two, b: 3}\n"
    assert read(text, tmp_path)["three"] == {"a": 2, "b": 3}


def test_a_mapping_is_taken_over_by_the_one_around_it(tmp_path: Path) -> None:
    text = "one: &one {a: 1}\ntwo: {inner: &inner {<<: *one, a: 2}, <<: *inner}\n"
    assert read(text, tmp_path)["two"] == {"a": 2, "inner": {"a": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1, b: 2, a: 3}", "the key 'a' stands twice"),
        ("one: &one {a: 1}\ntwo: {<<: *one, b: 1, b: 2}", "the key 'b' stands twice"),
        ("one: &one {a: 1, a: 2}\ntwo: {<<: *one}", "the key 'a' stands twice"),
        ("one: &one {a: 1}\ntwo: {<<: *one, <<: *one}", "the key '<<' stands twice; give it a list"),
        ("one: &one 1\ntwo: {<<: *one}", "expected a mapping"),
        ("{[1]: 2}", "is not valid YAML"),
    ],
)
def test_keys_that_stand_twice_and_odd_ones_are_refused(text: str, message: str, tmp_path: Path) -> None:
    assert message in fault(text, tmp_path)


def test_a_text_with_an_odd_key_is_no_traceback() -> None:
    with pytest.raises(ConfigError, match=r"--set x: '\{\[1\]: 2\}' is not YAML"):
        yaml.parse_yaml("{[1]: 2}", "--set x")


def test_one_document_is_wanted_and_several_can_be_asked_for(tmp_path: Path) -> None:
    text = "---\na: 1\n---\n# nothing\n---\nb: 2\n"
    assert "holds 2 documents" in fault(text, tmp_path)
    assert yaml.read_documents(tmp_path / "file.yaml") == [{"a": 1}, {"b": 2}]
    (tmp_path / "again.yaml").write_text(yaml.write_documents([{"a": 1}, {"b": 2}]))
    assert yaml.read_documents(tmp_path / "again.yaml") == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("text", ["", "---\n---\n", "[1, 2]", "a: 1\n---\n3\n"])
def test_each_document_must_be_a_mapping(text: str, tmp_path: Path) -> None:
    assert fault(text, tmp_path) == "must hold a mapping of keys to values"
