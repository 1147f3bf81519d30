from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.files import shipped
from evomerge.scoring.documents import hiding, long_context
from evomerge.scoring.documents.long_context import Ending, long_tail, needle, passkey, rows
from evomerge.scoring.documents.questions import Question
from evomerge.scoring.documents.texts import SECTORS, _kjv, passages, read_text
from evomerge.scoring.fitness import Fitness
from evomerge.scoring.opening import open_scorer
from tests.helpers.family import make_tokenizer

SIZE = 600


def size(document: Question) -> int:
    return max(len((document.prompt + choice).encode()) for choice in document.choices)


@pytest.mark.parametrize("make", [passkey, needle])
@pytest.mark.parametrize("text", ["filler", "python"])
@pytest.mark.parametrize("length", [SIZE, 5000])
def test_a_document_fills_its_length_and_no_more(make: Callable[..., Any], text: str, length: int) -> None:
    sizes = [size(document) for document in make(length=length, count=20, text=text)]
    assert max(sizes) <= length
    assert min(sizes) > length - 60


def test_one_of_ten_numbers_stands_in_the_prompt() -> None:
    for document in passkey(length=SIZE, count=50):
        assert len(set(document.choices)) == long_context.CHOICES
        inside = [choice for choice in document.choices if f"The pass key is{choice}." in document.prompt]
        assert inside == [document.choices[document.gold]]
        assert document.prompt.endswith("\nThe pass key is")


def test_numbers_of_one_digit_are_all_ten() -> None:
    documents = passkey(length=64, count=200, digits=1, text="python")
    assert {document.choices for document in documents} == {tuple(f" {digit}" for digit in range(10))}
    assert len({document.gold for document in documents}) == 10
    assert max(map(size, documents)) <= 64


@pytest.mark.parametrize("distractors", [0, 3, 9])
def test_the_fact_that_is_asked_for_is_told_once_among_others(distractors: int) -> None:
    for document in needle(length=900, count=30, distractors=distractors):
        told, question = document.prompt.rsplit("\n", 1)
        assert told.count(question) == 1
        assert f"{question}{document.choices[document.gold]}." in told
        named = [choice for choice in document.choices if f" is{choice}." in told]
        assert len(named) == distractors + 1
        assert len(set(document.choices)) == long_context.CHOICES


@pytest.mark.parametrize("make", [passkey, needle])
@pytest.mark.parametrize(("depth", "low", "high"), [(0, 0.0, 0.05), (0.5, 0.4, 0.6), (1.0, 0.9, 1.0)])
def test_a_fixed_depth_is_kept(make: Callable[..., Any], depth: float, low: float, high: float) -> None:
    options = {} if make is passkey else {"distractors": 0}
    for document in make(length=2000, count=10, depth=depth, **options):
        told, question = document.prompt.rsplit("\n", 1)
        assert low <= told.index(question) / len(told) <= high


def test_random_depths_are_everywhere() -> None:
    found = [document.prompt.index("The pass key") / 2000 for document in passkey(length=2000, count=100)]
    assert min(found) < 0.1
    assert max(found) > 0.85
    assert 0.35 < sum(found) / len(found) < 0.65


def test_no_word_is_cut_by_what_is_hidden() -> None:
    passage = b"one two three four five six"
    found = {hiding.hide(passage, ["X"], [step / 50]) for step in range(51)}
    words = passage.decode().split()
    assert found == {" ".join([*words[:at], "X", *words[at:]]) for at in range(len(words) + 1)}


def test_several_hidden_sentences_keep_their_order() -> None:
    assert hiding.hide(b"one two three", ["X", "Y", "Z"], [1.0, 0.0, 0.5]) == "Y one two Z three X"
    assert hiding.hide(b"", ["X", "Y"], [0.9, 0.1]) == "Y X"


def test_tails_are_the_same_after_any_context() -> None:
    short = long_tail(context=100, longest=2000, count=20)
    long = long_tail(context=2000, longest=2000, count=20)
    for one, other in zip(short, long, strict=True):
        assert one.tail == other.tail
        assert other.context.endswith(one.context)
        assert len(one.context.encode()) <= 100
        assert 1990 < len(other.context.encode()) <= 2000


def test_a_tail_begins_with_a_blank_after_a_word() -> None:
    for ending in long_tail(context=300, tail=128, count=50):
        assert ending.tail[0].isspace()
        assert not ending.context[-1].isspace()
        assert 96 < len(ending.tail.encode()) <= 128


@pytest.mark.parametrize(
    ("kind", "options"),
    [("passkey", {"length": SIZE}), ("needle", {"length": SIZE}), ("long_tail", {"context": SIZE})],
)
def test_documents_are_a_function_of_their_arguments(kind: str, options: dict[str, Any]) -> None:
    make = long_context.MAKERS[kind]
    made = {
        (seed, split): make(**options, count=20, seed=seed, split=split)
        for seed in (0, 1)
        for split in ("search", "holdout")
    }
    assert made[0, "search"] == make(**options, count=20, seed=0, split="search")
    unlike = [set(documents) for documents in made.values()]
    assert len(set.union(*unlike)) == sum(map(len, unlike)) == 80


def _pieces(documents: list[Any]) -> set[str]:
    """Stretches of eight words."""
    texts = [one.context + one.tail if isinstance(one, Ending) else one.prompt for one in documents]
    return {
        " ".join(words[at : at + 8]) for text in texts for words in [text.split()] for at in range(len(words) - 7)
    }


def test_search_and_holdout_share_no_passage_at_any_length(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(f"word{number}" for number in range(20_000)))
    made: dict[str, list[Any]] = {"search": [], "holdout": []}
    for split, documents in made.items():
        for length in (500, 3000, 20_000):
            about: dict[str, Any] = {"split": split, "text": "text.txt", "folder": tmp_path, "count": 12}
            documents += [*passkey(length=length, **about), *needle(length=length, **about)]
            documents += long_tail(context=length, **about)
    assert len(_pieces(made["search"])) > 5000
    assert not _pieces(made["search"]) & _pieces(made["holdout"])


def test_the_facts_of_search_and_holdout_are_about_different_cities() -> None:
    assert not set(long_context.CITIES[::2]) & set(long_context.CITIES[1::2])
    for split, cities in (("search", long_context.CITIES[::2]), ("holdout", long_context.CITIES[1::2])):
        for document in needle(length=900, count=20, split=split):  # type: ignore[arg-type]
            assert any(f"of {city} is" in document.prompt.rsplit("\n", 1)[1] for city in cities)


def test_passages_are_spread_over_the_split() -> None:
    text = b"".join(number.to_bytes(4, "big") for number in range(4096))
    found = passages(text, "search", 16, 64, random.Random(0))
    assert {len(passage) for passage in found} == {16}
    sector = len(text) // SECTORS
    starts = sorted(text.index(passage) for passage in found)
    assert {start // sector for start in starts} == {0, 2, 4, 6}
    assert {(start + 15) // sector for start in starts} == {0, 2, 4, 6}
    inside = [after - before for before, after in itertools.pairwise(starts) if after - before < sector]
    assert max(inside) < 2 * sector / 16
    assert min(inside) > 0


def test_characters_of_several_bytes_are_not_broken(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ein schöner grüner Käfer – für mich " * 500)
    for document in passkey(length=401, count=20, text="text.txt", folder=tmp_path):
        assert "\ufffd" not in document.prompt
        assert size(document) <= 401


def test_the_kjv_is_read_from_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bible"
    program.write_text(
        '#!/bin/sh\nfor n in 1 2 3 4 5 6 7 8 9; do echo "$1 In the beginning God created $n"; done\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    _kjv.cache_clear()
    try:
        assert read_text("kjv").startswith(b"Gen1:1-Rev22:21 In the beginning")
    finally:
        _kjv.cache_clear()


def test_a_missing_kjv_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    _kjv.cache_clear()
    with pytest.raises(ValueError, match="install Debian's package bible-kjv"):
        read_text("kjv")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("passkey", {}, "length: is missing; give bytes"),
        ("long_tail", {}, "context: is missing"),
        ("passkey", {"length": 10}, "length: is 10, but what is hidden and asked takes 46 bytes; give more"),
        ("passkey", {"length": 10**6, "text": "python"}, "give a longer text or less length"),
        ("passkey", {"length": "4k"}, "length: is '4k'; give a whole number, 1 or more"),
        ("passkey", {"length": 500, "depth": 1.5}, "depth: is 1.5; give a number from 0 to 1, or random"),
        ("needle", {"length": 500, "depth": "deep"}, "depth: is 'deep'"),
        ("passkey", {"length": 500, "split": "test"}, "split: is 'test'; give search or holdout"),
        ("passkey", {"length": 500, "count": 0, "seed": -1}, "count: is 0; .*; seed: is -1"),
        ("passkey", {"length": 500, "digits": 0}, "digits: is 0; give a whole number, 1 to 12"),
        ("needle", {"length": 900, "distractors": 10}, "distractors: is 10; give a whole number, 0 to 9"),
        ("needle", {"length": 900, "text": "nowhere.txt"}, "nowhere.txt cannot be read: No such file"),
        ("needle", {"length": 900, "text": 3}, "text: is 3; give python, kjv, filler or the path"),
        ("long_tail", {"context": 500, "longest": 100}, "longest: is 100; give a whole number, 500 or more"),
        ("long_tail", {"context": 500, "tail": 4}, "tail: is 4; give a whole number, 32 or more"),
        ("passkey", {"length": 500, "lenght": 5}, "lenght: is no option; did you mean 'length'"),
        ("passkey", {"length": 500, "depths": 0.5}, "depths: is no option; did you mean 'depth'"),
    ],
)
def test_wrong_arguments_are_one_clear_line(kind: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as error:
        rows(kind, options, tmp_path)
    assert "\n" not in str(error.value)


def test_a_tasks_metadata_is_passed_over(tmp_path: Path) -> None:
    given = {"length": 500, "count": 2, "version": 1.0, "pretrained": "x", "max_length": 4096}
    assert len(rows("passkey", given, tmp_path)) == 2


def test_endings_need_a_text_with_words() -> None:
    with pytest.raises(ValueError, match="text: long_tail needs running text; filler says the same again"):
        long_tail(context=100, text="filler")


# --- people are told what is cut ---------------------------------------------------------------------------


@pytest.fixture
def cut_fitness(tmp_path: Path) -> dict[str, Any]:
    """A fitness whose prompts are longer than the family's 64 tokens."""
    folder = shipped.folder("fitness") / "tasks"
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name in ("_passkey", "long_context.py"):
        shutil.copy(folder / name, tasks)
    for name, split in (("keys", "search"), ("keys_test", "holdout")):
        options = {"length": 200, "count": 4, "split": split}
        (tasks / f"{name}.yaml").write_text(
            yaml.safe_dump({"include": "_passkey", "task": name, "dataset_kwargs": options})
        )
    search, holdout = ({"task": "keys", "climb": "probability"}, {"task": "keys_test"})
    return {"include": str(tasks), "search": [search], "holdout": [holdout]}


TOLD = "prompts are cut from the left to 64 tokens, the model's maximum length: documents of keys"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "run"])
def test_check_and_run_say_that_prompts_are_cut(
    command: str, cut_fitness: dict[str, Any], write_experiment: Callable[..., Path]
) -> None:
    experiment = write_experiment(fitness=cut_fitness, budget={"candidates": 6})
    result = CliRunner().invoke(app, [command, str(experiment)])
    assert result.exit_code == 0, result.output
    assert TOLD in " ".join(result.output.split())


def test_score_says_that_prompts_are_cut(cut_fitness: dict[str, Any], family: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.yaml"
    path.write_text(yaml.safe_dump(cut_fitness))
    result = CliRunner().invoke(app, ["score", str(family / "models/base"), "--fitness", str(path)])
    assert result.exit_code == 0, result.output
    assert TOLD in " ".join(result.output.split())


def test_an_open_scorer_takes_a_greater_length(cut_fitness: dict[str, Any], family: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(family / "models/base")
    loaded = Fitness.model_validate(cut_fitness)
    short = open_scorer(model, make_tokenizer(), loaded, loaded.search)
    long = open_scorer(model, make_tokenizer(), loaded, loaded.search, 256)
    assert short is not None
    assert long is not None
    assert (short.cut, long.cut, long.note) == ({"keys": 4}, {"keys": 0}, None)
