"""Files of several merges are put in order, or refused with the faults of all documents."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.recipes.mergekit_yaml.stages import leading_to, results, stages, with_models


def merge(*models: str, name: str | None = None, **changes: Any) -> dict[str, Any]:
    entries = [{"model": model, "parameters": {"weight": 1}} for model in models]
    return {**({"name": name} if name else {}), "merge_method": "linear", "models": entries, **changes}


def fault_lines(*documents: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        stages("file.yaml", documents)
    return str(caught.value).splitlines()


def test_each_merge_comes_after_those_that_it_needs() -> None:
    last = merge("second", "x", base_model={"model": {"path": "first"}}, merge_method="task_arithmetic")
    made = stages("file.yaml", [last, merge("first", "y", name="second"), merge("x", "y", name="first")])
    assert [stage.name for stage in made] == ["first", "second", ""]
    assert made[2].needs == ("second", "first")
    assert results(made) == [made[2]]


def test_merges_that_no_other_merges_are_results_and_know_what_led_to_them() -> None:
    made = stages("", [merge("x", name="a"), merge("a", "y", name="b"), merge("x", "y", name="c")])
    assert [stage.name for stage in results(made)] == ["b", "c"]
    assert [stage.name for stage in leading_to(made[1], made)] == ["a", "b"]
    assert leading_to(made[2], made) == [made[2]]


def test_models_are_replaced_wherever_they_stand() -> None:
    data = {
        "base_model": {"model": {"path": "a", "revision": "v1"}},
        "tokenizer_source": "base",
        "tokenizer": {"source": "a"},
        "modules": {
            "default": {"slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}], "base_model": "b"}]}
        },
    }
    assert with_models(data, lambda value: {"model": {"path": "NEW"}} if value != "b" else value) == {
        "base_model": {"model": {"path": "NEW"}},
        "tokenizer_source": "base",
        "tokenizer": {"source": {"model": {"path": "NEW"}}},
        "modules": {
            "default": {
                "slices": [
                    {"sources": [{"model": {"model": {"path": "NEW"}}, "layer_range": [0, 2]}], "base_model": "b"}
                ]
            }
        },
    }


def test_the_faults_of_all_documents_are_told_at_once() -> None:
    lines = fault_lines(merge("x", name="a", dtpye=1), {"name": "b"}, merge("a", merge_method="linaer"))
    assert [line.partition(": ")[0] for line in lines] == [
        "file.yaml, document 1 (a)",
        "file.yaml, document 2 (b)",
        "file.yaml, document 3",
    ]
    assert "dtpye: is no key here" in lines[0]
    assert "merge_method: is missing; each of several documents is a mergekit merge" in lines[1]
    assert "Did you mean 'linear'?" in lines[2]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([merge("b", name="a"), merge("a", name="b")], "name: the merges a, b need each other's results"),
        ([merge("x", name="a"), merge("y", name="a"), merge("a")], "name: a stands over two documents"),
        ([merge("x", name="o/a"), merge("y", name="o-a"), merge("o/a", "o-a")], "name: o-a stands over two"),
        ([merge("x", name="a"), merge("y")], "name: is missing in a document; where no other merges its result"),
        ([merge("x"), merge("y")], "name: is missing in a document"),
    ],
)
def test_names_that_do_not_tell_results_apart_are_refused(documents: list[dict[str, Any]], message: str) -> None:
    (line,) = fault_lines(*documents)
    assert line.startswith(f"file.yaml: {message}")
