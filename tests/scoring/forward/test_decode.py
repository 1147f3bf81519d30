"""Greedy answers to many prompts at once are those of `model.generate` to each prompt alone."""

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.scoring.forward import decode, head
from evomerge.scoring.forward.budgets import Budget
from evomerge.scoring.generate import Generator
from tests.helpers.tiny_models import generation, short_of_memory

FAMILIES = ("llama", "qwen2", "gpt2", "gemma2", "gemma3", "mistral", "qwen2_window", "falcon", "opt", "gptj")
LENGTH = 8


@pytest.fixture
def prompts(scoring_few_shot):
    """Prompts on one beginning, some of them others' beginnings, short ones, a long one, and one twice."""
    rows = [row for row, _ in scoring_few_shot(5, 2)]
    return [*rows, rows[0][:-1], rows[0][:44], [5, 9, 7], [11], list(range(20, 140)), rows[3]]


def stock_answer(model, prompt, length=LENGTH):
    """The tokens that the model's own `generate` answers one prompt with."""
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=1
    )
    return output[0, len(prompt) :].tolist()


def assert_equal_to_stock(model, tokenizer, engine, requests):
    found = engine.answer([], range(len(requests)), None)
    for at, request in enumerate(requests):
        wanted = stock_answer(model, request.prompt, request.max_tokens)
        assert found.generations[at].tokens == len(wanted)
        assert found.generations[at].text == tokenizer.decode(wanted, skip_special_tokens=True)
        assert found.generations[at].finite
    return found


def forwarded_alone(monkeypatch):
    """Fails the test if an answer is left to `model.generate`."""

    def refuse(*_):
        raise AssertionError("this is left to model.generate")

    monkeypatch.setattr(Generator, "_generate", refuse)


@pytest.mark.slow
@pytest.mark.parametrize("batch_tokens", [32, 4096], ids=["many-batches", "one-batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_those_to_each_prompt_alone(
    family, batch_tokens, prompts, scoring_model, scoring_engine, scoring_tokenizer, monkeypatch
):
    """The prompts' shared beginning, and all but the shortest, are longer than the models' windows."""
    model = scoring_model(family)
    requests = [generation(prompt, LENGTH) for prompt in prompts]
    engine = scoring_engine(model, generations=requests, batch_tokens=batch_tokens)
    assert engine.shared
    forwarded_alone(monkeypatch)
    found = assert_equal_to_stock(model, scoring_tokenizer, engine, requests)
    distinct = len({tuple(row[:length]) for row in prompts for length in range(1, len(row) + 1)})
    answered = (len(prompts) - 1) * (LENGTH - 1)
    assert found.tokens < 1.1 * distinct + answered


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_rows_that_end_and_leave_do_not_disturb_the_others(
    family, prompts, scoring_model, scoring_engine, scoring_tokenizer, monkeypatch
):
    """Tokens that some answers have early and others late are made to end them."""
    model = scoring_model(family)
    free = [stock_answer(model, prompt, 16) for prompt in prompts]
    model.generation_config.eos_token_id = [1, *(free[at][min(2 * at, len(free[at]) - 1)] for at in (0, 2, 4, 10))]
    requests = [generation(prompt, 16) for prompt in prompts]
    engine = scoring_engine(model, generations=requests, batch_tokens=4096)
    forwarded_alone(monkeypatch)
    found = assert_equal_to_stock(model, scoring_tokenizer, engine, requests)
    answers = [found.generations[at] for at in range(len(requests))]
    assert len({answer.tokens for answer in answers}) > 2
    assert all(answer.finished or answer.tokens == 16 for answer in answers)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_one_token_answers_need_the_prompt_alone(family, prompts, scoring_model, scoring_engine, scoring_tokenizer):
    model = scoring_model(family)
    requests = [generation(prompt, 1) for prompt in prompts]
    engine = scoring_engine(model, generations=requests, batch_tokens=4096)
    found = assert_equal_to_stock(model, scoring_tokenizer, engine, requests)
    distinct = len({tuple(row[:length]) for row in prompts for length in range(1, len(row) + 1)})
    assert distinct <= found.tokens < 1.1 * distinct


def test_an_answer_may_reach_the_models_greatest_length(scoring_model, scoring_engine, scoring_tokenizer):
    model = scoring_model("gpt2")
    requests = [generation(range(10, 10 + length), 12) for length in (148, 5)]
    engine = scoring_engine(model, generations=requests)
    found = assert_equal_to_stock(model, scoring_tokenizer, engine, requests)
    assert max(found.generations[at].tokens for at in range(2)) == 12


def test_keys_of_a_batch_of_answers_stay_within_the_budget(
    prompts, scoring_model, scoring_engine, scoring_tokenizer, monkeypatch
):
    model = scoring_model("llama")
    requests = [generation(prompt, LENGTH) for prompt in prompts]
    engine = scoring_engine(model, generations=requests, batch_tokens=32)
    held = []
    plain = decode.Decoder._layers

    def layers(self, ready, columns, max_tokens):
        held.append((len(ready), len(ready) * (columns + max_tokens)))
        return plain(self, ready, columns, max_tokens)

    monkeypatch.setattr(decode.Decoder, "_layers", layers)
    assert_equal_to_stock(model, scoring_tokenizer, engine, requests)
    assert len(held) > 2
    assert all(size <= 8 * 32 or rows == 1 for rows, size in held)


@pytest.mark.parametrize(
    "fits",
    [lambda lines, columns: columns > 1 or lines <= 3, lambda lines, columns: lines * columns <= 40],
    ids=["while-answering", "while-reading-prompts"],
)
def test_running_out_of_memory_is_survived_and_remembered(
    fits, prompts, scoring_model, scoring_engine, scoring_tokenizer
):
    model = scoring_model("llama")
    requests = [generation(prompt, LENGTH) for prompt in prompts if len(prompt) < 100]
    engine = scoring_engine(model, generations=requests, batch_tokens=4096)
    calm = engine.answer([], range(len(requests)), None)
    failures, _ = short_of_memory(model, fits)
    tight = engine.answer([], range(len(requests)), None)
    assert failures
    assert tight.generations == calm.generations
    assert tight.tokens > calm.tokens
    failures.clear()
    assert engine.answer([], range(len(requests)), None).generations == calm.generations
    assert failures == []


def test_answers_given_before_memory_ran_out_are_not_given_again(prompts, scoring_model, scoring_engine):
    model = scoring_model("llama")
    requests = [generation(prompt, LENGTH) for prompt in dict.fromkeys(map(tuple, prompts))]
    engine = scoring_engine(model, generations=requests, batch_tokens=32)
    calm = engine.answer([], range(len(requests)), None).generations
    given: list[int] = []
    failures: list[tuple[int, ...]] = []
    failures, _ = short_of_memory(model, lambda *_: len(given) < 4 or failures)
    tight = engine._generator.run(range(len(requests)), report=lambda new: given.extend(new))
    assert len(failures) == 1
    assert tight.answers == calm
    assert given[:4] == list(dict.fromkeys(given))[:4]
    assert not set(given[:4]) & set(given[4:])


@pytest.mark.parametrize(
    "fits",
    [lambda *_: False, lambda lines, columns: columns > 1],
    ids=["no-prompt-can-be-read", "no-answer-can-be-given"],
)
def test_memory_too_small_for_anything_fails_the_candidate(fits, prompts, scoring_model, scoring_engine):
    model = scoring_model("llama")
    engine = scoring_engine(model, generations=[generation(prompts[0], LENGTH)], batch_tokens=4096)
    short_of_memory(model, fits)
    with pytest.raises(CandidateError, match="runs out of memory; use a smaller model"):
        engine.answer([], [0], None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_noted(value, scoring_model, scoring_engine):
    model = scoring_model("llama")
    requests = [generation(prompt, 1) for prompt in ([5, 6, 7], [5, 6, 8], [9, 10])]
    engine = scoring_engine(model, generations=requests)
    assert all(answer.finite for answer in engine.answer([], range(3), None).generations.values())
    with torch.no_grad():
        model.model.embed_tokens.weight[8] = value
    assert not engine.answer([], range(3), None).generations[1].finite


def test_logits_that_turn_bad_in_the_middle_of_an_answer_are_noted(scoring_model, scoring_engine):
    model = scoring_model("llama")
    request = generation([5, 6, 7], 6)
    engine = scoring_engine(model, generations=[request])
    first = stock_answer(model, request.prompt, 6)
    assert first[2] not in (*request.prompt, *first[:2])
    with torch.no_grad():
        model.model.embed_tokens.weight[first[2]] = float("nan")
    assert not engine.answer([], [0], None).generations[0].finite


@pytest.mark.parametrize("bias", [False, True])
def test_the_best_token_in_half_precision_is_the_best_of_float32_logits(bias):
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 64).bfloat16(), torch.randn(2000, 64).bfloat16()
    offset = torch.randn(2000).bfloat16() if bias else None
    exact = hidden.float() @ weight.float().T + (0 if offset is None else offset.float())
    best, finite = head.best_tokens(hidden, weight, offset)
    assert best.tolist() == exact.argmax(-1).tolist()
    assert finite.all()
    coarse = torch.nn.functional.linear(hidden, weight, offset).argmax(-1)
    assert (coarse != best).sum() > 3, "half-precision logits alone are not enough"


def test_a_bf16_model_answers_with_the_best_tokens_of_float32_logits(
    scoring_model, scoring_engine, scoring_tokenizer
):
    model = scoring_model("llama").bfloat16()
    request = generation(range(20, 30), 6)
    found = scoring_engine(model, generations=[request]).answer([], [0], None)
    row = list(request.prompt)
    with torch.no_grad():
        for _ in range(6):
            hidden = model.model(torch.tensor([row]))[0][0, -1]
            row.append(int((model.lm_head.weight.float() @ hidden.float()).argmax()))
    assert found.generations[0].text == scoring_tokenizer.decode(row[10:], skip_special_tokens=True)


def test_prompts_are_cut_into_batches_in_the_order_in_which_they_are_ready(scoring_model, prompts):
    model = scoring_model("llama")
    rows = [np.array(row) for row in dict.fromkeys(map(tuple, prompts))]
    reading = decode.prepare_reading(model, rows, LENGTH, reads=Budget(32), columns=200)
    assert sorted(at for wave in reading.waves for at in wave) == list(range(len(rows)))
    ready = [int(reading.places[at][:, 0].max()) for wave in reading.waves for at in wave]
    assert ready == sorted(ready)
