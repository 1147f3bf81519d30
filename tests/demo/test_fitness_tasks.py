from __future__ import annotations

from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from evomerge.files import shipped, yaml
from evomerge.scoring.documents import skills

FITNESS = yaml.read_yaml(shipped.folder("fitness") / "tiny_skills.yaml")
SEARCH = [entry["task"] for entry in FITNESS["search"]]
HOLDOUT = [entry["task"] for entry in FITNESS["holdout"]]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    manager = TaskManager(include_path=str(shipped.folder("fitness") / FITNESS["include"]), include_defaults=False)
    loaded: dict[str, Any] = manager.load([*SEARCH, *HOLDOUT])["tasks"]
    return loaded


def test_every_skill_has_a_search_and_a_holdout_task() -> None:
    assert [f"tiny_{skill}" for skill in skills.SKILLS] == SEARCH
    assert [f"tiny_{skill}_test" for skill in skills.SKILLS] == HOLDOUT


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SEARCH, *HOLDOUT])
def test_a_task_has_one_right_choice_per_document(tasks: dict[str, Any], name: str) -> None:
    task = tasks[name]
    documents = list(task.eval_docs)
    assert len(documents) >= (500 if name in HOLDOUT else 100)
    skill = name.removeprefix("tiny_").removesuffix("_test")
    for document in documents:
        choices = task.doc_to_choice(document)
        argument = task.doc_to_text(document).removeprefix(f"{skill}(").removesuffix(")=")
        assert choices[task.doc_to_target(document)] == skills.SKILLS[skill].solve(argument)
        assert len(set(choices)) == len(choices) == skills.CHOICES


def test_the_answer_follows_the_prompt_without_a_space(tasks: dict[str, Any]) -> None:
    task = tasks["tiny_sort"]
    document = task.eval_docs[0]
    requests = task.construct_requests(document, task.doc_to_text(document), metadata=("tiny_sort", 0, 1))
    assert [request.args for request in requests] == [
        (document["prompt"], choice) for choice in document["choices"]
    ]


def test_search_and_holdout_documents_share_no_prompt(tasks: dict[str, Any]) -> None:
    for search, holdout in zip(SEARCH, HOLDOUT, strict=True):
        seen = {document["prompt"] for document in tasks[search].eval_docs}
        assert not seen & {document["prompt"] for document in tasks[holdout].eval_docs}
