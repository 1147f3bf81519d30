"""Answers in free text: stop strings, lengths, truncation."""

import json

import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.scoring.forward.decode import Decoder
from evomerge.scoring.generate import Generator
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer

FREE = 24  # tokens


@pytest.fixture
def make(scoring_make_generation):
    return scoring_make_generation


@pytest.fixture
def stock(scoring_tokenizer, scoring_stock, tmp_path):
    """What stock lm-eval answers to the task that `make` wrote last."""

    def stock(model):
        samples = scoring_stock(model, scoring_tokenizer, ["made"], tmp_path)["samples"]["made"]
        return [sample["resps"][0][0] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]

    return stock


@pytest.fixture
def ways(monkeypatch):
    """Notes by which way requests are answered."""
    taken = []
    for owner, name, way in ((Decoder, "run", "own"), (Generator, "_answer", "generate")):
        plain = getattr(owner, name)

        def noted(*arguments, plain=plain, way=way):
            taken.append(way)
            return plain(*arguments)

        monkeypatch.setattr(owner, name, noted)
    return taken


def texts(scorer):
    return [document.instances[0].resps[0] for document in scorer.tasks["made"].documents]


def test_answers_that_reach_their_length_are_counted(make):
    scorer = make(length=5)
    assert scorer.score().truncated == {"made": 7}
    assert all(texts(scorer))


def test_answers_ended_by_a_stop_string_are_not_counted_and_lose_it(make):
    free = make(length=12)
    free.score()
    letters = sorted({letter for text in texts(free) for letter in text if letter in "acdeghilnorstw"})
    until = "[" + ", ".join(f'"{letter}"' for letter in letters) + "]"
    stopped = make(until=until, length=12)
    report = stopped.score()
    assert report.truncated["made"] < 7
    for text, whole in zip(texts(stopped), texts(free), strict=True):
        assert whole.startswith(text)
        assert not set(letters) & set(text)


def test_an_answer_ended_by_an_end_of_text_token_is_complete(make, scoring_model):
    model = scoring_model("llama")
    model.generation_config.eos_token_id = list(range(model.config.vocab_size))
    free, ended = make(), make(model=model)
    assert ended.score().truncated == {"made": 0}
    assert free.score().truncated == {"made": 7}
    for text, whole in zip(texts(ended), texts(free), strict=True):
        assert whole.startswith(text.rstrip("\ufffd"))
        assert len(text) < len(whole)


def test_an_answer_does_not_depend_on_its_neighbours(make):
    until = '["e", "a", "t"]'
    alone, together = make(until=until, batch_tokens=1), make(until=until, batch_tokens=4096)
    assert alone.score().truncated == together.score().truncated
    assert texts(alone) == texts(together)


def test_sampled_answers_repeat_with_the_call_and_leave_the_generator_alone(make):
    scorer = make(more=", do_sample: true, temperature: 1.5")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    scorer.score()
    first = texts(scorer)
    torch.manual_seed(8)
    scorer.score()
    assert texts(scorer) == first
    torch.manual_seed(7)
    scorer.score()
    assert torch.equal(torch.get_rng_state(), state)


def stop_strings(text):
    """Stop strings that an answer has in it: one letter, several, a letter of several bytes, a space at the end."""
    middle = len(text) // 2
    return {
        "a letter": text[middle],
        "several tokens": text[middle - 3 : middle + 3],
        "a long one": text[2 : middle + 2],
        "not ASCII": next((letter for letter in text[2:] if not letter.isascii() and letter != "\ufffd"), "é"),
        "a space at its end": text[middle - 1] + " ",
        "never there": "no such text",
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", stop_strings("some text of an answer"))
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_answers_end_at_stop_strings_as_in_stock_lm_eval(family, kind, make, stock, ways, scoring_model):
    model = scoring_model(family)
    free = make(length=FREE, model=model)
    free.score()
    until = [stop_strings(text)[kind] for text in texts(free) if len(text) > 12][:2]
    scorer = make(until=json.dumps(until), length=FREE, model=model)
    report = scorer.score()
    assert texts(scorer) == stock(model)
    assert set(ways) == {"own"}
    if kind in ("a letter", "several tokens", "a long one"):
        assert report.truncated["made"] < 7
        assert report.tokens < free.score().tokens


def test_a_stop_string_that_a_token_holds_in_its_middle_ends_the_answer(
    make, stock, scoring_model, scoring_tokenizer
):
    """The output embedding is made to prefer a token of several letters after a while."""
    model = scoring_model("llama")
    long = max(range(2, 400), key=lambda token: len(scoring_tokenizer.decode([token])))
    word = scoring_tokenizer.decode([long])
    assert len(word) > 4
    with torch.no_grad():
        model.lm_head.weight[long] *= 6
    free = make(length=FREE, model=model)
    free.score()
    assert any(word in text for text in texts(free))
    scorer = make(until=json.dumps([word[1:3]]), length=FREE, model=model)
    report = scorer.score()
    assert texts(scorer) == stock(model)
    assert report.truncated["made"] < 7
    assert not any(word[1:3] in text for text in texts(scorer))


def test_few_shot_prompts_are_answered_as_in_stock_lm_eval(
    ways, scoring_model, scoring_tokenizer, scoring_tasks, scoring_stock
):
    model = scoring_model("gemma3")
    specs = [TaskSpec("gen_numbers", num_fewshot=5)]
    for tokens in (32, 4096):
        scorer = Scorer(model, scoring_tokenizer, specs, include=scoring_tasks, batch_tokens=tokens)
        scorer.score()
        samples = scoring_stock(model, scoring_tokenizer, ["gen_numbers"], num_fewshot=5)["samples"]["gen_numbers"]
        wanted = {sample["doc_id"]: sample["resps"][0][0] for sample in samples}
        documents = scorer.tasks["gen_numbers"].documents
        assert [document.instances[0].resps[0] for document in documents] == [wanted[at] for at in sorted(wanted)]
    assert set(ways) == {"own"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"num_beams": 3}], ids=str
)
def test_what_a_models_own_settings_ask_for_is_left_to_generate(setting, make, stock, ways, scoring_model):
    plain = make(length=FREE)
    plain.score()
    model = scoring_model("llama")
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
    ways.clear()
    scorer = make(length=FREE, model=model)
    scorer.score()
    assert set(ways) == {"generate"}
    assert texts(scorer) == stock(model)
    assert texts(scorer) != texts(plain)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["num_beams: 3", "repetition_penalty: 1.7", "min_new_tokens: 5"])
def test_what_a_tasks_options_ask_for_is_left_to_generate(option, make, stock, ways, scoring_model):
    model = scoring_model("llama")
    scorer = make(length=FREE, more=f", do_sample: false, {option}", model=model)
    scorer.score()
    assert set(ways) == {"generate"}
    assert texts(scorer) == stock(model)


def test_options_of_sampling_do_not_change_greedy_answers(make, ways):
    plain, with_options = make(), make(more=", do_sample: false, temperature: 0.7, top_p: 0.5")
    plain.score()
    with_options.score()
    assert texts(plain) == texts(with_options)
    assert set(ways) == {"own"}


def test_sampled_answers_are_drawn_by_generate_and_differ_from_greedy_ones(make, ways):
    plain, drawn = make(), make(more=", do_sample: true, temperature: 1.5")
    plain.score()
    ways.clear()
    drawn.score()
    assert set(ways) == {"generate"}
    assert texts(plain) != texts(drawn)


@pytest.mark.parametrize("family", ["mamba", "bloom", "llama_longrope"])
def test_models_that_cannot_be_told_what_to_see_are_left_to_generate(family, make, stock, ways, scoring_model):
    model = scoring_model(family)
    scorer = make(length=6, model=model, batch_tokens=8)
    scorer.score()
    assert not scorer.shared
    assert set(ways) == {"generate"}
    assert texts(scorer) == stock(model)


def test_generate_survives_running_out_of_memory(make, scoring_model):
    model = scoring_model("llama")
    model.generation_config.repetition_penalty = 1.7
    scorer = make(length=6, model=model, batch_tokens=4096)
    scorer.score()
    calm = texts(scorer)
    failures: list[None] = []

    def check(_, __, keywords):
        if len(keywords["input_ids"]) > 2:
            failures.append(None)
            raise torch.OutOfMemoryError("provoked")

    model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    scorer.score()
    assert texts(scorer) == calm
    assert failures
    failures.clear()
    scorer.score()
    assert failures == []


@pytest.mark.parametrize("more", ["", ", repetition_penalty: 1.7"], ids=["own", "generate"])
def test_logits_that_are_not_finite_fail_the_candidate(more, make, scoring_model):
    model = scoring_model("llama")
    scorer = make(more=more, model=model)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(CandidateError, match=r"made.*not finite"):
        scorer.score()


def test_an_empty_stop_string_ends_each_answer_at_once_as_in_lm_eval(make, stock):
    scorer = make(until='["", "a"]')
    assert scorer.score().truncated == {"made": 0}
    assert texts(scorer) == stock(scorer._model)


@pytest.mark.parametrize("more", [", foo: 3", ", num_beams: 2, do_sample: true, num_return_sequences: 3"])
def test_options_that_generate_refuses_fail_the_candidate(more, make):
    with pytest.raises(CandidateError, match="generation_kwargs"):
        make(more=more).score()
