from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.demo import family
from evomerge.demo.family import Course, Settings

SMALL = Settings(
    hidden=32,
    layers=2,
    heads=2,
    mlp=64,
    batch=8,
    warmup=2,
    base=Course(4, 2e-3, {"reverse": 1.0, "double": 1.0}),
    experts={
        "reverse": Course(3, 1e-3, {"reverse": 1.0, "double": 0.1}),
        "double": Course(3, 1e-3, {"reverse": 0.1, "double": 1.0}),
    },
)


def _weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return family.train_family(tmp_path_factory.mktemp("family"), settings=SMALL)


def test_the_family_is_a_base_and_one_folder_per_skill(small: dict[str, Path]) -> None:
    assert list(small) == ["base", "reverse", "double"]
    assert small["base"].name == "base"
    assert small["double"].name == "expert-double"
    assert {path.parent.name for path in small.values()} == {"models"}


def test_the_models_load_in_float32_with_their_own_weights(small: dict[str, Path]) -> None:
    states = {}
    for name, path in small.items():
        model = AutoModelForCausalLM.from_pretrained(path)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        states[name] = model.state_dict()
    assert len(states["base"]) == len(states["double"])
    moved = [key for key in states["base"] if not torch.equal(states["base"][key], states["double"][key])]
    assert len(moved) == len(states["base"])
    assert any(not torch.equal(states["reverse"][key], states["double"][key]) for key in states["base"])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(small: dict[str, Path], tmp_path: Path) -> None:
    again = family.train_family(tmp_path / "again", settings=SMALL)
    other = family.train_family(tmp_path / "other", settings=SMALL, seed=1)
    for name, path in small.items():
        assert _weights(path) == _weights(again[name])
        assert _weights(path) != _weights(other[name])


def test_training_leaves_the_global_generator_and_the_threads_alone(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    family.train_family(tmp_path, settings=SMALL)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_finished_family_is_not_trained_again(tmp_path: Path) -> None:
    first = family.train_family(tmp_path, settings=SMALL)
    stamps = {name: (path / "model.safetensors").stat().st_mtime_ns for name, path in first.items()}
    calls: list[tuple[int, int, str]] = []
    family.train_family(tmp_path, settings=SMALL, progress=lambda *call: calls.append(call))
    assert {name: (path / "model.safetensors").stat().st_mtime_ns for name, path in first.items()} == stamps
    assert [done for done, _, _ in calls] == [4, 7, 10]
    assert all("already trained" in text for _, _, text in calls)


def test_only_what_a_changed_setting_touches_is_trained_again(tmp_path: Path) -> None:
    family.train_family(tmp_path, settings=SMALL)
    longer = replace(SMALL.experts["double"], steps=5)
    changed = replace(SMALL, experts={**SMALL.experts, "double": longer})
    texts: list[str] = []
    family.train_family(tmp_path, settings=changed, progress=lambda done, total, text: texts.append(text))
    assert texts[:2] == ["base: already trained", "reverse: already trained"]
    assert texts[2:] == ["training double"] * 5


def test_a_folder_without_its_record_is_trained_again(tmp_path: Path) -> None:
    paths = family.train_family(tmp_path, settings=SMALL)
    before = _weights(paths["double"])
    (paths["double"] / family.RECORD).unlink()
    (paths["double"] / "model.safetensors").write_bytes(b"half a file")
    family.train_family(tmp_path, settings=SMALL)
    assert _weights(paths["double"]) == before


def test_an_interrupted_training_leaves_no_folder(tmp_path: Path) -> None:
    def stop(done: int, total: int, text: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        family.train_family(tmp_path, settings=SMALL, progress=stop)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["base"]


def test_progress_counts_every_step_up_to_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    family.train_family(tmp_path, settings=SMALL, progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(1, 11))
    assert {total for _, total, _ in calls} == {10}
    assert calls[0][2] == "training base"
    assert calls[-1][2] == "training double"


@pytest.mark.parametrize("text", ["reverse(abcp)=pcba", "sort(dcba)=abcd", "double(4716)=09432"])
def test_text_survives_the_tokenizer(small: dict[str, Path], text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small["base"])
    ids = tokenizer.encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_a_prompt_ends_where_its_answer_begins(small: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small["base"])
    prompt, answer = "double(4716)=", "09432"
    assert tokenizer.encode(prompt + answer) == tokenizer.encode(prompt) + tokenizer.encode(answer)
    assert len(tokenizer.encode(answer)) == 5


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    course = Course(40, 5e-3, {"sort": 1.0})
    paths = family.train_family(tmp_path, settings=replace(SMALL, base=course, experts={}))
    model = AutoModelForCausalLM.from_pretrained(paths["base"])
    inputs, labels = family._tensors(family.tokenizer(), [("sort(dcba)=", "abcd"), ("sort(bdca)=", "abcd")])
    with torch.no_grad():
        assert family._loss(model, inputs, labels) < 2.9  # an untrained model: ln(33) = 3.5


def test_the_record_says_what_the_model_was_trained_with(small: dict[str, Path]) -> None:
    record = json.loads((small["double"] / family.RECORD).read_text())
    assert record["model"] == "double"
    assert record["seed"] == 0
    assert record["course"]["steps"] == 3
    assert record["base"]["steps"] == 4


def test_tied_weights_are_stored_once(small: dict[str, Path]) -> None:
    names = set(load_file(small["base"] / "model.safetensors"))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
