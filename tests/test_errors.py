from __future__ import annotations

import pytest

from evomerge.errors import ConfigError, first_line, named_first_line, one_line, suggest


@pytest.mark.parametrize(
    ("message", "first", "named", "one"),
    [
        ("no such layer", "no such layer", "ValueError: no such layer", "ValueError: no such layer"),
        ("\n a\n  b", "a", "ValueError: a", "ValueError: a b"),
        ("", "ValueError", "ValueError", "ValueError"),
        ("x" * 400, "x" * 400, f"ValueError: {'x' * 400}", f"ValueError: {'x' * 300}"),
    ],
)
def test_an_exception_is_shortened_to_a_line(message: str, first: str, named: str, one: str) -> None:
    error = ValueError(message)
    assert (first_line(error), named_first_line(error), one_line(error)) == (first, named, one)


def test_faults_are_lines_with_the_file_that_they_are_in() -> None:
    joined = ConfigError.join(
        [ConfigError("a.yaml", ["x: is wrong"]), ConfigError("b.yaml", ["y: too", "z: as well"])]
    )
    assert str(joined).splitlines() == ["a.yaml: x: is wrong", "b.yaml: y: too", "b.yaml: z: as well"]


def test_an_unknown_name_suggests_the_nearest_and_lists_all() -> None:
    assert suggest("tiess", ["slerp", "ties"]) == " Did you mean 'ties'? Known: slerp, ties."
    assert suggest("x", []) == " Known: none."
