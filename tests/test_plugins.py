from __future__ import annotations

import pytest

from evomerge import plugins
from evomerge.errors import ConfigError, suggest
from evomerge.files import shipped


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_plugins_are_found_with_a_summary(kind: str) -> None:
    for name in plugins.names(kind):
        assert not name.startswith("_")
        assert plugins.summary(kind, name)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_a_summary_is_the_first_line_of_the_modules_docstring(kind: str) -> None:
    for name in plugins.names(kind):
        assert plugins.summary(kind, name) == (plugins.load(kind, name).__doc__ or "").strip().splitlines()[0]


def test_an_unknown_plugin_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"space: unknown method 'dareties'\. Did you mean 'dare_ties'\? Known: "):
        plugins.load("methods", "dareties", "space")


def test_helpers_are_no_plugins() -> None:
    with pytest.raises(ConfigError):
        plugins.load("methods", "_masks")


def test_names_cannot_leave_the_catalog(tmp_path: object) -> None:
    home = shipped.folder("fitness")
    with pytest.raises(ConfigError, match=r"no search space '\.\./fitness/tiny_skills'"):
        shipped.find("search_spaces", "../fitness/tiny_skills", home, "space")


def test_suggestions_list_everything_when_nothing_is_near() -> None:
    assert suggest("xyz", ["b", "a"]) == " Known: a, b."
    assert suggest("xyz", []) == " Known: none."
