"""Batches, memory, precision: what a forward pass may not change."""

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.scoring import Scorer, TaskSpec

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


def rows_per_forward(model):
    """Collects the shape of each forward pass's input."""
    shapes = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, keywords: shapes.append(tuple(keywords["input_ids"].shape)), with_kwargs=True
    )
    return shapes


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


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_results_do_not_depend_on_the_batch(family, scoring_model, scoring_tokenizer, scoring_tasks):
    model = scoring_model(family)
    reports = [
        Scorer(model, scoring_tokenizer, SPECS, include=scoring_tasks, batch_tokens=tokens).score()
        for tokens in (1, 300, 100_000)
    ]
    assert_close(reports[0], reports[1], 2e-5)
    assert_close(reports[0], reports[2], 2e-5)
    assert reports[0].tokens == reports[2].tokens
    assert reports[0].padding == 0 < reports[2].padding


def test_one_token_choices_share_one_row(make, llama):
    shapes = rows_per_forward(llama)
    scorer = make([TaskSpec("mc_letters")], batch_tokens=100_000)
    shapes.clear()
    scorer.score()
    assert [rows for rows, _ in shapes] == [12]


def test_no_batch_exceeds_the_token_budget(make, llama):
    shapes = rows_per_forward(llama)
    scorer = make([TaskSpec("mc_letters"), TaskSpec("ll_target")], batch_tokens=200)
    shapes.clear()
    scorer.score()
    assert len(shapes) > 3
    assert all(rows * length <= 200 for rows, length in shapes)


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


def test_running_out_of_memory_is_survived_and_remembered(make, llama):
    scorer = make(batch_tokens=4096)
    calm = scorer.score()
    failures = []

    def small_memory(_, __, keywords):
        ids = keywords["input_ids"]
        if ids is not None and ids.shape[0] > 3:
            failures.append(ids.shape)
            raise torch.OutOfMemoryError("provoked")

    hook = llama.base_model.register_forward_pre_hook(small_memory, with_kwargs=True)
    tight = scorer.score()
    assert len(failures) > 1
    assert_close(tight, calm, 2e-5)
    failures.clear()
    assert_close(scorer.score(), calm, 2e-5)
    assert failures == []
    hook.remove()


def test_a_row_that_does_not_fit_alone_fails_the_candidate(make, llama):
    scorer = make([TaskSpec("mc_letters")])

    def no_memory(*_):
        raise torch.OutOfMemoryError("provoked")

    llama.base_model.register_forward_pre_hook(no_memory)
    with pytest.raises(CandidateError, match=r"one row of \d+ tokens runs out of memory"):
        scorer.score()


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
    request = scorer._packed._requests[0]
    hidden = model.model(torch.tensor([request.row]))[0][0, -1]
    logits = hidden.float() @ model.lm_head.weight.float().T
    wanted = logits.log_softmax(-1)[request.answer[0]].item()
    assert scorer._packed.run([0]).logprobs[0] == pytest.approx(wanted, abs=1e-4)
    coarse = model(torch.tensor([request.row])).logits[0, -1].log_softmax(-1)[request.answer[0]].item()
    assert coarse != pytest.approx(wanted, abs=1e-2)


def test_bf16_results_hardly_depend_on_the_batch(scoring_model, scoring_tokenizer, scoring_tasks):
    model = scoring_model("llama").bfloat16()
    found = [
        Scorer(model, scoring_tokenizer, SPECS[:3], include=scoring_tasks, batch_tokens=tokens).score()
        for tokens in (1, 4096)
    ]
    for task in ("mc_letters", "mc_prefixes", "ll_target"):
        one, other = (report.tasks[task].metrics["loglikelihood"] for report in found)
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=0.3)
