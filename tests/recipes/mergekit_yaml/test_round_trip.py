"""A recipe that is written and read is the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge import plugins
from evomerge.recipes import mergekit_yaml
from evomerge.recipes.recipe import Recipe
from tests.helpers.mergekit_recipes import NAMES, make, read

LISTS = {"one value": 0.25, "by layer": [0.1, 0.1, 0.4, 0.45]}
NODES: dict[str, Any] = {
    **LISTS,
    "by module": {"attention": 0.1, "norm": LISTS["by layer"], "head": 0.3, "*": 0.4},
    "by every module": {"attention": 0.1, "mlp": 0.2, "norm": 0.3, "embedding": 0.4, "head": 0.45, "other": 0.48},
    "by pattern": {"*q_proj*": 0.1, "*layers.2.*": 0.2, "*self_attn*": 0.3, "*": LISTS["by layer"]},
    "by tensor": {"model.norm.weight": 0.1, "lm_head.weight": 0.2, "*": LISTS["by layer"]},
    "by pattern and module": {"*o_proj*": LISTS["by layer"], "attention": 0.15, "mlp": 0.2, "*": 0.3},
}


def varied(method: str, node: Any) -> dict[str, Any]:
    """The node for every parameter that mergekit has, each expert's a little different."""
    lacking = _without_node(method)
    found = {}
    for parameter in plugins.load("methods", method).PARAMETERS:
        if parameter.name not in lacking:
            experts = make(method).experts if parameter.per_expert else [""]
            rows = {expert: _shifted(node, number / 100) for number, expert in enumerate(experts)}
            found[parameter.name] = rows if parameter.per_expert else node
    return found


def _without_node(method: str) -> tuple[str, ...]:
    """The parameters that mergekit lacks, and those that it takes as whole numbers."""
    dialect = mergekit_yaml.DIALECTS[method]
    return (*dialect.lacking, *dialect.whole)


def _shifted(node: Any, by: float) -> Any:
    if isinstance(node, dict):
        return {key: _shifted(child, by) for key, child in node.items()}
    return [number + by for number in node] if isinstance(node, list) else node + by


def survives(recipe: Recipe) -> None:
    text = mergekit_yaml.write(recipe, NAMES)
    assert text is not None
    again = read(text)
    assert again == recipe
    assert again.sha256 == recipe.sha256


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
@pytest.mark.parametrize("method", mergekit_yaml.SUPPORTED)
def test_a_recipe_that_is_written_and_read_is_the_same(method: str, node: Any) -> None:
    survives(make(method, varied(method, node)))


def test_whole_numbers_are_written_as_such() -> None:
    recipe = make("karcher", {"max_iter": 300.0, "tol": 1e-9})
    survives(recipe)
    assert "max_iter: 300," in str(mergekit_yaml.write(recipe, NAMES))


@pytest.mark.parametrize("method", mergekit_yaml.SUPPORTED)
def test_every_option_survives(method: str) -> None:
    for name, default in plugins.load("methods", method).OPTIONS.items():
        if name != "task_vectors":
            survives(make(method, options={name: not default}))


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_task_vectors_are_whether_there_is_a_base_model(method: str) -> None:
    survives(make(method, options={"task_vectors": True}))
    survives(make(method, options={"task_vectors": False}, vocabulary="base"))


@pytest.mark.parametrize("vocabulary", [None, "base", "union"])
def test_the_vocabulary_survives(vocabulary: str | None) -> None:
    survives(make("ties", vocabulary=vocabulary))


def test_a_base_that_is_an_expert_too_survives() -> None:
    survives(make("linear", experts={"a": "org/a", "base": "org/base"}))


NUMBERS = st.floats(0.01, 0.49).map(lambda number: round(number, 3))
VALUES = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=4, max_size=4))
KEYS = ("*q_proj*", "*proj*", "*layers.1.*", "*layers.3.mlp*", "lm_head.weight", "attention", "mlp", "norm")
ROWS = st.permutations(KEYS).flatmap(
    lambda keys: st.integers(0, len(keys)).flatmap(
        lambda count: st.fixed_dictionaries(dict.fromkeys((*keys[:count], "*"), VALUES))
    )
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(method=st.sampled_from(mergekit_yaml.SUPPORTED), data=st.data())
def test_any_table_survives(method: str, data: st.DataObject) -> None:
    lacking = _without_node(method)
    parameters = {}
    for parameter in plugins.load("methods", method).PARAMETERS:
        if parameter.name not in lacking:
            rows = data.draw(ROWS)
            experts = make(method).experts
            by_expert = parameter.per_expert and data.draw(st.booleans())
            parameters[parameter.name] = (
                {key: {expert: data.draw(VALUES) for expert in experts} for key in rows} if by_expert else rows
            )
    survives(make(method, parameters))
