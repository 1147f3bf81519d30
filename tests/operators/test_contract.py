"""The contract of every operator; the operators are found by themselves."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from evomerge import operators, plugins
from evomerge.errors import ConfigError
from evomerge.files import hashing
from evomerge.files.schema import Strict
from evomerge.operators import Applied, Context, Cost, OperatorModule
from evomerge.recipes.recipe import Corpus
from tests.helpers.family import make_tokenizer

NAMES = plugins.names("operators")
PURE = [name for name in NAMES if not operators.load(name).TRAINING]
TRAINING = [name for name in NAMES if operators.load(name).TRAINING]
# Options that make each operator change a tiny model. FILE stands for a file of texts.
FILE = "FILE"
GIVEN: dict[str, dict[str, Any]] = {
    "context_extension": {"factor": 4.0, "attention_scale": 1.25},
    "distillation": {"data": {"x": FILE}, "teachers": {"x": "base"}, "steps": 2, "length": 16, "batch": 2},
}

Given = Callable[[str], tuple[OperatorModule, Any]]


def make_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=14,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def state(model: Any) -> tuple[str, dict[str, Any]]:
    """A model's tensors as their hash, and its config."""
    return hashing.sha256(dict([*model.named_parameters(), *model.named_buffers()])), model.config.to_dict()


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """An operator's module and options that make it change a tiny model."""
    texts = tmp_path / "texts.txt"
    texts.write_text("abcabcabdabcabcabd" * 8)

    def make(name: str) -> tuple[OperatorModule, Any]:
        operator = operators.load(name)
        return operator, operator.Options.model_validate(
            json.loads(json.dumps(GIVEN[name]).replace(FILE, str(texts)))
        )

    return make


@pytest.fixture
def context(tmp_path: Path) -> Context:
    def parent(name: str) -> Any:
        model = make_model()
        for parameter in model.parameters():
            parameter.mul_(1.5)
        return model

    return Context(
        seed=0,
        tokenizer=make_tokenizer(),
        folder=tmp_path / "cache",
        kept=tmp_path / "kept.safetensors",
        parent=parent,
        identity={"base": "00"},
    )


def test_all_operators_are_found() -> None:
    assert len(NAMES) == 2
    assert set(NAMES) == set(GIVEN), "a new operator needs options here that make it change a tiny model"
    assert PURE
    assert TRAINING


def test_an_unknown_operator_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown operator 'distilation'.*distillation"):
        operators.load("distilation")


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_keeps_the_contract(name: str) -> None:
    operator: Any = operators.load(name)
    assert operator.__doc__
    assert "arXiv" in operator.__doc__, "cites the paper that it comes from"
    assert isinstance(operator.TRAINING, bool)
    assert issubclass(operator.Options, Strict)
    for function in ("check", "reach", "estimate", "teachers", "corpora", "apply"):
        assert callable(getattr(operator, function)), function


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_explained(name: str) -> None:
    operator: Any = operators.load(name)
    explained = f"{operator.__doc__}\n{operator.Options.__doc__}"
    for option in operator.Options.model_fields:
        assert re.search(rf"\b{option}\b", explained), f"{name}'s docstrings lack {option}"


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_json(name: str, given: Given) -> None:
    operator, options = given(name)
    dumped = json.loads(json.dumps(options.model_dump(mode="json"), allow_nan=False))
    assert operator.Options.model_validate(dumped) == options


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_before_it_acts_has_its_type(name: str, given: Given) -> None:
    operator, options = given(name)
    config = make_model().config
    before = config.to_dict()
    assert operator.check(options, config) == []
    reach = operator.reach(options, config)
    assert reach is None or (isinstance(reach, int) and reach > 0)
    cost = operator.estimate(options, 1_000_000)
    assert isinstance(cost, Cost)
    assert min(cost.seconds, cost.steps, cost.tokens, cost.peak_bytes, cost.disk_bytes) >= 0
    assert config.to_dict() == before, "only `apply` changes a config"
    assert (cost.steps > 0) == operator.TRAINING
    teachers, corpora = operator.teachers(options), operator.corpora(options)
    assert isinstance(teachers, set)
    assert all(isinstance(corpus, Corpus) for corpus in corpora.values())
    assert operator.TRAINING or (teachers == set() and corpora == {})


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_bits_and_a_record_that_is_json(name: str, given: Given, context: Context) -> None:
    operator, options = given(name)
    models, records = [make_model(), make_model()], []
    for model in models:
        applied = operator.apply(model, options, context)
        assert isinstance(applied, Applied)
        records.append(json.dumps(applied.record, allow_nan=False))
        context.kept.unlink(missing_ok=True)
    assert state(models[0]) == state(models[1]) != state(make_model())
    if not operator.TRAINING:
        assert records[0] == records[1]


@pytest.mark.parametrize("name", PURE)
def test_a_pure_operator_is_undone_exactly_and_leaves_no_file(name: str, given: Given, context: Context) -> None:
    operator, options = given(name)
    model, untouched = make_model(), make_model()
    applied = operator.apply(model, options, context)
    assert state(model) != state(untouched)
    applied.undo()
    assert state(model) == state(untouched)
    assert not context.kept.exists()
    assert not context.folder.exists()


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_operator_finds_its_file_and_does_not_train_again(
    name: str, given: Given, context: Context
) -> None:
    def no_parent(name: str) -> Any:
        raise AssertionError(f"{name} is asked for, though all is trained")

    def no_report(step: int, measured: Any) -> None:
        raise AssertionError(f"step {step} is trained again")

    operator, options = given(name)
    model, again = make_model(), make_model()
    first = operator.apply(model, options, context)
    assert context.kept.is_file()
    assert first.record["sha256"] == hashing.sha256(load_file(context.kept))
    late = replace(context, parent=no_parent, report=no_report, folder=context.folder / "other")
    second = operator.apply(again, options, late)
    assert state(again) == state(model)
    assert second.record == first.record
    assert second.cost == first.cost


@pytest.mark.parametrize("name", TRAINING)
def test_undoing_a_training_operator_restores_all_but_the_weights(
    name: str, given: Given, context: Context
) -> None:
    operator, options = given(name)
    model = make_model()
    config, buffers = copy.deepcopy(model.config.to_dict()), dict(copy.deepcopy(model).named_buffers())
    operator.apply(model, options, context).undo()
    assert model.config.to_dict() == config
    assert hashing.sha256(dict(model.named_buffers())) == hashing.sha256(buffers)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
