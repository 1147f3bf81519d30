from __future__ import annotations

import pytest

from evomerge.scoring.documents import skills

SEARCH, HOLDOUT = 200, 600


@pytest.mark.parametrize(
    ("call", "answer"),
    [("reverse(hbkd)=", "dkbh"), ("sort(hbkd)=", "bdhk"), ("double(4716)=", "09432"), ("double(0950)=", "01900")],
)
def test_a_skill_answers_as_its_name_says(call: str, answer: str) -> None:
    name, argument = call.removesuffix(")=").split("(")
    assert skills.SKILLS[name].prompt(argument) == call
    assert skills.SKILLS[name].solve(argument) == answer


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_documents_are_a_function_of_their_arguments(skill: str) -> None:
    assert skills.documents(skill, "search", 50) == skills.documents(skill, "search", 50)
    assert skills.documents(skill, "search", 50) != skills.documents(skill, "search", 50, seed=1)
    assert skills.examples(skill, 50, seed=3) == skills.examples(skill, 50, seed=3)
    assert skills.examples(skill, 50, seed=3) != skills.examples(skill, 50, seed=4)


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_training_search_and_holdout_share_no_prompt(skill: str) -> None:
    train = {prompt for seed in range(3) for prompt, _ in skills.examples(skill, 3000, seed=seed)}
    search = {document.prompt for document in skills.documents(skill, "search", SEARCH)}
    holdout = {document.prompt for document in skills.documents(skill, "holdout", HOLDOUT)}
    assert (len(search), len(holdout)) == (SEARCH, HOLDOUT)
    assert not train & search
    assert not train & holdout
    assert not search & holdout


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_choices_are_distinct_and_of_equal_length_with_one_right_answer(skill: str) -> None:
    for document in skills.documents(skill, "search", SEARCH):
        argument = document.prompt.removeprefix(f"{skill}(").removesuffix(")=")
        answer = skills.SKILLS[skill].solve(argument)
        assert len(set(document.choices)) == skills.CHOICES
        assert [choice == answer for choice in document.choices].index(True) == document.gold
        assert {len(choice) for choice in document.choices} == {len(answer)}


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_the_right_answer_stands_in_every_place_equally_often(skill: str) -> None:
    golds = [document.gold for document in skills.documents(skill, "holdout", HOLDOUT)]
    for place in range(skills.CHOICES):
        assert 0.18 < golds.count(place) / HOLDOUT < 0.32
