from __future__ import annotations

import random
import time

import pytest

from evomerge.operators.training import overlap

WORDS = [f"w{number}" for number in range(40)]


def test_texts_of_their_own_have_nothing_to_tell() -> None:
    reserved = {"sums": ["What is 12 + 30?", "What is 12 + 31?"], "long": [" ".join(WORDS)]}
    assert overlap.shared(["What is 13 + 30? It is 43.", "something else"], reserved) == []


def test_a_whole_short_document_is_found_whatever_its_case_and_spaces() -> None:
    found = overlap.shared(
        ["so: WHAT  is\n12 +30? Who knows"], {"sums": ["What is 12 + 30?"], "none": ["Not there"]}
    )
    assert found == ["sums: 1 of its 1 documents is in the training texts, as 'What is 12 + 30?'"]


def test_punctuation_tells_short_documents_apart() -> None:
    assert overlap.shared(["1000 + 2000 = 3000"], {"sums": ["1000 - 2000 ="]}) == []
    assert overlap.shared(["1000 + 2000 = 3000"], {"sums": ["1000 + 2000 ="]}) != []


def test_a_document_of_few_characters_does_not_count() -> None:
    assert overlap.shared(["1 + 2 = 3"], {"sums": ["1 + 2 ="]}) == []
    assert overlap.shared(["abcdefgh"], {"letters": ["abcdefgh"]}) != []


@pytest.mark.parametrize(("length", "found"), [(12, False), (13, True)])
def test_a_run_of_thirteen_words_is_found_without_punctuation(length: int, found: bool) -> None:
    document = " ".join(WORDS)
    text = "other words, then " + ", ".join(WORDS[5 : 5 + length]).upper() + "; and others"
    assert bool(overlap.shared([text], {"long": [document]})) is found


def test_tasks_are_told_with_their_first_examples() -> None:
    documents = [f"question number {number}" for number in range(9)]
    lines = overlap.shared([". ".join(documents)], {"b": documents, "a": documents[:1] + ["x" * 80]})
    assert [line.split(":")[0] for line in lines] == ["a", "b"]
    assert "9 of its 9 documents" in lines[1]
    assert lines[1].count("question") == 3


def test_a_million_words_take_seconds() -> None:
    rng = random.Random(0)
    vocabulary = [f"word{number}" for number in range(5000)]
    reserved = {"task": [" ".join(rng.choices(vocabulary, k=20)) for _ in range(2000)]}
    texts = [" ".join(rng.choices(vocabulary, k=200)) for _ in range(500)]
    begun = time.process_time()
    assert overlap.shared(texts, reserved) == []
    assert time.process_time() - begun < 3.0
