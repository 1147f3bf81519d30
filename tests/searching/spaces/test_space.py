"""The search spaces that ship."""

from __future__ import annotations

import pytest

from evomerge.files import shipped, yaml
from evomerge.searching.spaces import decoding
from evomerge.searching.spaces.genes import initial
from evomerge.searching.spaces.space import SearchSpace
from tests.helpers.made_spaces import models


@pytest.mark.parametrize("name", shipped.names("search_spaces"))
def test_every_shipped_space_decodes(name: str) -> None:
    path = shipped.find("search_spaces", name, shipped.folder("search_spaces"), "test")
    chosen = SearchSpace.model_validate(yaml.read_yaml(path))
    common = models(12, "a" if chosen.method == "slerp" else "abc")
    coordinates = decoding.coordinates(chosen, common)
    assert decoding.decode(chosen, common, initial(coordinates)).methods == [chosen.methods[0]]
    assert path.read_text().startswith("#"), "the first line says what it is, for `evomerge ls`"


def test_the_promised_spaces_ship() -> None:
    promised = {"linear", "task_arithmetic_by_layer", "ties_by_layer", "dare_ties_by_layer", "slerp_by_layer"}
    assert promised | {"smooth_task_arithmetic"} <= set(shipped.names("search_spaces"))
