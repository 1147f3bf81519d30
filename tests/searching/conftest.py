"""Which tests of samplers are slow."""

from __future__ import annotations

import pytest

SLOW = {"gp", "tpe", "optunahub"}  # a proposal of theirs takes milliseconds, of gp a tenth of a second


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the slow samplers, whichever test they are a case of."""
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and hasattr(item, "callspec")
            and item.callspec.params.get("name") in SLOW
        ):
            item.add_marker(pytest.mark.slow)
