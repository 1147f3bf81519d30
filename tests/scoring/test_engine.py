"""What has been answered is not asked again, and what was interrupted goes on with the same bits."""

import pytest
import torch

from evomerge.scoring import answers as kept
from evomerge.scoring.answers import Answers
from evomerge.scoring.forward import packed
from tests.helpers.tiny_models import generation


@pytest.fixture(autouse=True)
def answers_after_each_batch(monkeypatch):
    monkeypatch.setattr(packed, "_REPORT_EVERY", 0.0)
    monkeypatch.setattr(packed, "_SCORED_AT_ONCE", 1)
    monkeypatch.setattr(kept, "SAVE_EVERY", 0.0)


@pytest.fixture
def pairs(scoring_few_shot):
    return scoring_few_shot(10, 3)


@pytest.fixture
def requests(pairs):
    return [generation(row, 6) for row in dict.fromkeys(tuple(row) for row, _ in pairs)][:10]


@pytest.fixture
def make(scoring_model, scoring_engine, pairs, requests):
    """A new engine for all pairs and generations: (family, what to change in the model) -> engine."""

    def make(family="llama", change=lambda model: None, **keywords):
        model = scoring_model(family)
        change(model)
        return scoring_engine(model, pairs, requests, **keywords)

    return make


def ask(engine, answers, likelihoods=None, generations=None):
    """Asks for all, or for some."""
    if likelihoods is None:
        likelihoods = range(len(engine.likelihoods))
    if generations is None:
        generations = range(len(engine.generations))
    return engine.answer(likelihoods, generations, answers)


def assert_equal_bits(one, other):
    assert one.likelihoods == other.likelihoods
    assert one.generations == other.generations


@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])
def test_what_is_answered_is_not_asked_again(family, make, tmp_path):
    first = ask(make(family), Answers(tmp_path, "model"))
    assert first.tokens > 0
    again = ask(make(family), Answers(tmp_path, "model"))
    assert (again.tokens, again.padding) == (0, 0)
    assert_equal_bits(first, again)


def test_answers_of_memory_alone_serve_as_well(make):
    engine, answers = make(), Answers(None, "")
    first = ask(engine, answers)
    again = ask(engine, answers)
    assert again.tokens == 0
    assert_equal_bits(first, again)
    assert ask(engine, None).tokens == first.tokens


def test_what_another_model_answered_is_not_taken(make, tmp_path):
    first = ask(make(), Answers(tmp_path, "one"))
    assert ask(make(), Answers(tmp_path, "other")).tokens == first.tokens


def test_overlapping_choices_ask_only_for_what_is_new(make, pairs, requests):
    engine, answers = make(), Answers(None, "")
    ask(engine, answers, range(12), range(4))
    more = ask(engine, answers, range(6, 18), range(2, 6))
    assert more.likelihoods.keys() == set(range(6, 18))
    assert more.generations.keys() == set(range(2, 6))
    only = ask(make(), None, range(12, 18), range(4, 6))
    assert more.tokens == only.tokens
    assert {at: more.likelihoods[at] for at in range(12, 18)} == only.likelihoods
    everything = ask(engine, answers)
    whole = ask(make(), None)
    assert everything.tokens < whole.tokens
    for at, (logprob, greedy) in whole.likelihoods.items():
        assert everything.likelihoods[at] == (pytest.approx(logprob, abs=1e-4), greedy)
    assert everything.generations == whole.generations


def stop_at(model, number):
    """Interrupts the forward pass of that number."""
    passes: list[None] = []

    def count(*_):
        passes.append(None)
        if len(passes) == number:
            raise KeyboardInterrupt

    return model.base_model.register_forward_hook(count)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])
@pytest.mark.parametrize("batch_tokens", [32, 64])
def test_an_interrupted_call_goes_on_with_the_same_bits(family, batch_tokens, make, tmp_path):
    passes: list[None] = []
    counted = make(family, lambda model: model.base_model.register_forward_hook(lambda *_: passes.append(None)))
    passes.clear()
    ask(counted, None)
    whole = ask(make(family, batch_tokens=batch_tokens), None)
    tokens = []
    for number in (3, max(4, len(passes) // 4), len(passes) // 2, len(passes) * 4 // 5):
        folder = tmp_path / str(number)
        engine = make(family, batch_tokens=batch_tokens)
        hook = stop_at(engine._packed._model, number)
        with pytest.raises(KeyboardInterrupt):
            ask(engine, Answers(folder, "model"))
        hook.remove()
        rest = ask(make(family, batch_tokens=batch_tokens), Answers(folder, "model"))
        assert_equal_bits(rest, whole)
        assert 0 < rest.tokens <= whole.tokens
        tokens.append(rest.tokens)
        assert ask(make(family), Answers(folder, "model")).tokens == 0
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] < 0.7 * whole.tokens


def test_generations_that_were_interrupted_are_not_begun_anew(make, tmp_path, requests):
    engine = make(batch_tokens=8)
    whole = ask(make(batch_tokens=8), None, [])
    hook = stop_at(engine._packed._model, 25)
    with pytest.raises(KeyboardInterrupt):
        ask(engine, Answers(tmp_path, "model"), [])
    hook.remove()
    stored = Answers(tmp_path, "model")
    assert 0 < len(stored._running) < len(requests)
    rest = ask(make(batch_tokens=8), stored, [])
    assert rest.generations == whole.generations
    assert 0 < rest.tokens < whole.tokens


def test_an_interrupted_call_that_is_not_taken_up_leaves_its_answers(make, tmp_path):
    engine = make()
    hook = stop_at(engine._packed._model, 4)
    with pytest.raises(KeyboardInterrupt):
        ask(engine, Answers(tmp_path, "model"))
    hook.remove()
    half = ask(make(), Answers(tmp_path, "model"), None, [])
    assert half.tokens < ask(make(), None, None, []).tokens


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.config.rope_parameters.update(rope_theta=5e3),
        lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
        lambda model: setattr(model.generation_config, "eos_token_id", [1, 7]),
        lambda model: setattr(model.generation_config, "repetition_penalty", 1.7),
    ],
    ids=["rope", "norm", "end-of-text", "penalty"],
)
def test_a_model_with_another_configuration_is_asked_again(change, make, tmp_path):
    first = ask(make(), Answers(tmp_path, "model"))
    other = ask(make(change=change), Answers(tmp_path, "model"))
    assert other.tokens > 0
    assert first.likelihoods.keys() == other.likelihoods.keys()
    assert ask(make(), Answers(tmp_path, "model")).tokens == 0, "the first model's answers stand"


@pytest.mark.parametrize(
    "change",
    [{"max_tokens": 5}, {"until": ("</s>", "a")}, {"options": {"temperature": 0.5, "do_sample": False}}],
    ids=str,
)
def test_a_generation_asked_for_otherwise_is_asked_again(change, scoring_model, scoring_engine):
    model, answers = scoring_model("llama"), Answers(None, "")
    plain = scoring_engine(model, generations=[generation([5, 6, 7], 6)])
    ask(plain, answers)
    keywords = {"max_tokens": 6, **change}
    assert ask(scoring_engine(model, generations=[generation([5, 6, 7], **keywords)]), answers).tokens > 0
    assert ask(plain, answers).tokens == 0


def test_a_row_with_another_answer_or_another_row_is_asked_again(scoring_model, scoring_engine):
    model, answers = scoring_model("llama"), Answers(None, "")
    ask(scoring_engine(model, [([5, 6, 7], [8])]), answers)
    for pair in [([5, 6, 7], [9]), ([5, 6, 7], [7, 8]), ([5, 6, 6], [8])]:
        assert ask(scoring_engine(model, [pair]), answers).tokens > 0
    assert ask(scoring_engine(model, [([5, 6, 7], [8])]), answers).tokens == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_not_kept(value, make, tmp_path):
    engine = make()
    weight = engine._packed._model.model.norm.weight
    before = weight[0].item()
    with torch.no_grad():
        weight[0] = value
    bad = ask(engine, Answers(tmp_path, "model"))
    assert not any(answer.finite for answer in bad.generations.values())
    assert Answers(tmp_path, "model").finished == {}
    with torch.no_grad():
        weight[0] = before
    assert_equal_bits(ask(engine, Answers(tmp_path, "model")), ask(engine, None))


def test_sampled_answers_are_not_kept(scoring_model, scoring_engine):
    drawn = generation([5, 6, 7], 6, options={"do_sample": True, "temperature": 1.5})
    engine = scoring_engine(scoring_model("llama"), [([5, 6], [7])], [drawn, generation([5, 6, 7], 6)])
    answers = Answers(None, "")
    first = ask(engine, answers)
    assert len(answers.finished) == 2
    again = ask(engine, answers)
    assert 0 < again.tokens < first.tokens
    assert again.generations[1] == first.generations[1]
    assert again.likelihoods == first.likelihoods


def test_a_request_asked_for_twice_is_answered_once(make):
    engine = make()
    once, twice = ask(engine, None, [0, 1, 2], [3]), ask(engine, None, [0, 1, 2, 0, 1], [3, 3])
    assert once.tokens == twice.tokens
    assert_equal_bits(once, twice)
