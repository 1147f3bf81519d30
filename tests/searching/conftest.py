"""Which tests of samplers are slow."""

from __future__ import annotations

import pytest

SLOW = {"gp"}  # a proposal takes a tenth of a second, where others take a millisecond or less


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of a slow sampler, whichever test they are a case of."""
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and hasattr(item, "callspec")
            and item.callspec.params.get("name") in SLOW
        ):
            item.add_marker(pytest.mark.slow)
