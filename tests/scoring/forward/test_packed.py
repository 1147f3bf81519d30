"""Batches, memory, precision: what a forward pass may not change."""

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.scoring.answers import Answers
from evomerge.scoring.forward import admission, packed
from evomerge.scoring.forward.budgets import LONG
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer
from tests.helpers.tiny_models import plain_logprobs, short_of_memory

SPECS = [TaskSpec("mc_letters"), TaskSpec("mc_prefixes"), TaskSpec("ll_target"), TaskSpec("gen_numbers")]


@pytest.fixture
def llama(scoring_model):
    return scoring_model("llama")


@pytest.fixture
def make(llama, scoring_tokenizer, scoring_tasks):
    """A scorer of the Llama on the given tasks."""

    def make(specs=SPECS, **keywords):
        return Scorer(llama, scoring_tokenizer, specs, include=scoring_tasks, **keywords)

    return make


def assert_close(one, other, tolerance):
    assert one.tasks.keys() == other.tasks.keys()
    for task, score in one.tasks.items():
        assert score.metrics.keys() == other.tasks[task].metrics.keys()
        for metric, column in score.metrics.items():
            np.testing.assert_allclose(column, other.tasks[task].metrics[metric], rtol=0, atol=tolerance)


def shapes_of_forwards(model):
    """Collects the shape of each forward pass's input."""
    shapes = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, keywords: shapes.append(tuple(keywords["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.fixture(params=["shared", "row by row"])
def shared(request, monkeypatch):
    """Whether rows share tokens; where not, the model is taken for one that cannot be told what sees what."""
    if request.param != "shared":
        monkeypatch.setattr(admission, "find_masks", lambda *_: None)
    return request.param == "shared"


def test_two_calls_with_the_same_weights_give_equal_bits(make):
    scorer = make()
    assert_close(scorer.score(), scorer.score(), 0)


def test_a_subset_equals_the_same_rows_of_all(make):
    scorer = make()
    whole = scorer.score()
    part = scorer.score({"mc_letters": [7, 2, 3], "ll_target": [0], "gen_numbers": [5, 1]})
    assert part.tasks.keys() == {"mc_letters", "ll_target", "gen_numbers"}
    for task, ids in {"mc_letters": [2, 3, 7], "ll_target": [0], "gen_numbers": [1, 5]}.items():
        assert part.tasks[task].documents.tolist() == ids
        for metric, column in part.tasks[task].metrics.items():
            np.testing.assert_allclose(column, whole.tasks[task].metrics[metric][ids], rtol=0, atol=1e-5)
    assert 0 < part.tokens < whole.tokens


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_results_do_not_depend_on_the_batch(family, shared, scoring_model, scoring_tokenizer, scoring_tasks):
    model = scoring_model(family)
    scorers = [
        Scorer(model, scoring_tokenizer, SPECS, include=scoring_tasks, batch_tokens=tokens)
        for tokens in (32, 300, 4096)
    ]
    assert all(scorer.shared == shared for scorer in scorers)
    one, *others = [scorer.score() for scorer in scorers]
    for other in others:
        assert_close(one, other, 1e-5)


def test_sharing_tokens_does_not_change_results(make, monkeypatch):
    shared = make().score()
    monkeypatch.setattr(admission, "find_masks", lambda *_: None)
    alone = make()
    assert not alone.shared
    report = alone.score()
    assert_close(shared, report, 1e-5)
    assert shared.tokens < 0.8 * report.tokens


def test_choices_of_one_token_are_one_row(make):
    """A row holds the context alone; the contexts share what they begin with."""
    scorer = make([TaskSpec("mc_letters")])
    rows = {request.row for request in scorer._engine.likelihoods}
    assert (len(scorer._engine.likelihoods), len(rows)) == (48, 12)
    assert scorer.score().tokens < sum(map(len, rows))


@pytest.mark.parametrize("tokens", [32, 200, 4096])
def test_each_token_of_the_prefix_tree_is_forwarded_once(tokens, make):
    scorer = make([TaskSpec("mc_letters"), TaskSpec("mc_prefixes"), TaskSpec("mc_inputs")], batch_tokens=tokens)
    rows = [request.row for request in scorer._engine.likelihoods]
    distinct = len({row[:length] for row in rows for length in range(1, len(row) + 1)})
    report = scorer.score()
    assert distinct <= report.tokens < 1.1 * distinct
    assert report.tokens < 0.4 * sum(map(len, rows))


def test_no_batch_of_several_lines_exceeds_the_token_budget(make, llama):
    shapes = shapes_of_forwards(llama)
    scorer = make([TaskSpec("mc_letters"), TaskSpec("ll_target"), TaskSpec("rolling")], batch_tokens=64)
    assert max(len(request.row) for request in scorer._engine.likelihoods) > 64
    shapes.clear()
    scorer.score()
    assert len(shapes) > 3
    assert all(lines * length <= 64 or (lines == 1 and length <= LONG * 64) for lines, length in shapes)


def test_a_row_far_longer_than_the_budget_is_forwarded_in_parts(make, llama):
    whole = make([TaskSpec("rolling")]).score()
    shapes = shapes_of_forwards(llama)
    scorer = make([TaskSpec("rolling")], batch_tokens=8)
    longest = max(len(request.row) for request in scorer._engine.likelihoods)
    shapes.clear()
    report = scorer.score()
    assert all(lines * length <= LONG * 8 < longest for lines, length in shapes)
    np.testing.assert_allclose(
        report.tasks["rolling"].metrics["loglikelihood"], whole.tasks["rolling"].metrics["loglikelihood"], rtol=1e-6
    )


def test_parameters_changed_in_place_change_the_scores(make, llama):
    scorer = make([TaskSpec("mc_letters")])
    before = scorer.score()
    kept = [parameter.clone() for parameter in llama.parameters()]
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.mul_(0.5)
    changed = scorer.score().tasks["mc_letters"].metrics["loglikelihood"]
    assert not np.allclose(changed, before.tasks["mc_letters"].metrics["loglikelihood"], atol=1e-3)
    with torch.no_grad():
        for parameter, old in zip(llama.parameters(), kept, strict=True):
            parameter.copy_(old)
    assert_close(scorer.score(), before, 0)


def test_building_a_scorer_leaves_model_and_tokenizer_alone(make, llama, scoring_tokenizer):
    places = {name: parameter.data_ptr() for name, parameter in llama.named_parameters()}
    size, pad = len(scoring_tokenizer), scoring_tokenizer.pad_token
    make().score()
    assert places == {name: parameter.data_ptr() for name, parameter in llama.named_parameters()}
    assert (len(scoring_tokenizer), scoring_tokenizer.pad_token) == (size, pad)


def test_a_model_left_in_training_mode_is_scored_without_dropout(scoring_model, scoring_tokenizer, scoring_tasks):
    model = scoring_model("gpt2")
    scorer = Scorer(model, scoring_tokenizer, [TaskSpec("mc_letters")], include=scoring_tasks)
    before = scorer.score()
    model.train()
    assert_close(scorer.score(), before, 0)


def test_running_out_of_memory_is_survived_and_remembered(shared, make, llama):
    scorer = make(batch_tokens=4096)
    assert scorer.shared == shared
    calm = scorer.score()
    failures, _ = short_of_memory(llama, lambda lines, columns: lines * columns <= 50)
    tight = scorer.score()
    assert len(failures) > 1
    assert_close(tight, calm, 1e-5)
    failures.clear()
    assert_close(scorer.score(), calm, 1e-5)
    assert failures == []


def test_what_was_answered_before_memory_ran_out_is_not_lost(make, llama, monkeypatch):
    monkeypatch.setattr(packed, "_SCORED_AT_ONCE", 1)
    specs = [TaskSpec("mc_letters"), TaskSpec("ll_target")]
    scorer = make(specs, batch_tokens=200)
    calm = scorer.score()
    passes = shapes_of_forwards(llama)
    failures, _ = short_of_memory(llama, lambda *_: len(passes) != 4)
    found = []
    chosen = range(len(scorer._engine.likelihoods))
    tight = scorer._engine._packed.run(chosen, report=lambda new: found.append(dict(new)))
    assert len(failures) == 1
    assert len(found[0]) > 0
    assert sorted(request for new in found for request in new) == list(chosen), "each is answered once"
    answers = {request: answer for new in found for request, answer in new.items()}
    assert tight.answers == answers
    assert_close(scorer.score(), calm, 1e-5)


def test_answers_given_before_memory_ran_out_for_good_are_kept(make, llama, monkeypatch):
    monkeypatch.setattr(packed, "_SCORED_AT_ONCE", 1)
    scorer = make([TaskSpec("mc_letters")], batch_tokens=64)
    passes = shapes_of_forwards(llama)
    short_of_memory(llama, lambda *_: len(passes) < 4)
    answers = Answers(None, "")
    with pytest.raises(CandidateError, match="runs out of memory"):
        scorer.score(answers=answers)
    assert 0 < len(answers._running) < 48


def test_memory_too_small_for_anything_fails_the_candidate(make, llama):
    scorer = make([TaskSpec("mc_letters")])
    failures, _ = short_of_memory(llama, lambda *_: False)
    with pytest.raises(CandidateError, match=r"scoring \d+ tokens at once runs out of memory; use a smaller model"):
        scorer.score()
    assert failures


def test_a_row_that_does_not_fit_alone_fails_the_candidate(make, llama, monkeypatch):
    monkeypatch.setattr(admission, "find_masks", lambda *_: None)
    scorer = make([TaskSpec("ll_target"), TaskSpec("rolling")])
    longest = max(len(request.row) for request in scorer._engine.likelihoods)
    failures, _ = short_of_memory(llama, lambda lines, columns: lines * columns < longest)
    with pytest.raises(CandidateError, match=r"runs out of memory"):
        scorer.score()
    assert failures


@pytest.mark.parametrize("task", ["mc_letters", "ll_target", "gen_numbers"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_fail_the_candidate(task, value, make, llama):
    scorer = make([TaskSpec(task)])
    with torch.no_grad():
        llama.model.norm.weight[0] = value
    with pytest.raises(CandidateError, match=f"{task}.*not finite"):
        scorer.score()


def test_a_bf16_body_gets_float32_logits(scoring_model, scoring_tokenizer, scoring_tasks):
    model = scoring_model("llama")
    with torch.no_grad():
        model.model.norm.weight.mul_(8)
    model = model.bfloat16()
    scorer = Scorer(model, scoring_tokenizer, [TaskSpec("mc_letters")], include=scoring_tasks)
    assert not scorer.full_forward
    request = scorer._engine.likelihoods[0]
    with torch.no_grad():
        hidden = model.model(torch.tensor([request.row]))[0][0, -1]
        logits = hidden.float() @ model.lm_head.weight.float().T
    wanted = logits.log_softmax(-1)[request.answer[0]].item()
    assert scorer._engine._packed.run([0]).answers[0][0] == pytest.approx(wanted, abs=1e-4)
    coarse, _ = plain_logprobs(model, request.row, request.answer)
    assert coarse != pytest.approx(wanted, abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen2"])
def test_bf16_results_hardly_depend_on_the_batch_or_on_sharing(
    family, scoring_model, scoring_engine, scoring_few_shot, monkeypatch
):
    """At most 0.024 nats per token and 0.4 % were measured over four seeds; these models give 7 nats per token."""
    model = scoring_model(family).bfloat16()
    pairs = scoring_few_shot(8, 4)
    found = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(admission, "find_masks", lambda *_: None)
        for tokens in (32, 300, 4096):
            engine = scoring_engine(model, pairs, batch_tokens=tokens)
            assert engine.shared == shared
            answers = engine.answer(range(len(pairs)), [], None).likelihoods
            found.append([answers[at][0] for at in range(len(pairs))])
    spread = np.ptp(found, axis=0)
    assert (spread <= 0.05 * np.array([len(answer) for _, answer in pairs])).all()
    assert (spread <= 0.01 * np.abs(found[0])).all()
    assert spread.max() > 1e-4, "were it exact, this test would ask for too little"
