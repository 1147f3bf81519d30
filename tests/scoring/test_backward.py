"""Backward passes through what is climbed: the scorer's numbers, and the gradients of plain autograd."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError, ConfigError
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer
from evomerge.scoring.sloped_metrics import STAND_IN
from tests.helpers.tiny_models import CONFIGS, short_of_memory

KINDS = {
    "mc_letters": ("probability", "loglikelihood", "margin"),
    "mc_prefixes": ("probability", "loglikelihood", "margin"),
    "mc_several": ("probability", "loglikelihood", "margin"),
    "mc_inputs": ("probability", "loglikelihood", "margin"),
    "ll_target": ("loglikelihood",),
    "rolling": ("loglikelihood", "loglikelihood_per_word", "loglikelihood_per_byte"),
    "gen_numbers": ("loglikelihood",),
    "gen_several": ("loglikelihood",),
}
WAYS = [(task, metric) for task, metrics in KINDS.items() for metric in metrics]
TERMS = {"mc_letters": ("margin", 0.5), "mc_prefixes": ("probability", 2.0), "rolling": ("loglikelihood", 0.01)}


@pytest.fixture
def make(scoring_model, scoring_tokenizer, scoring_tasks):
    """A model and its scorer: (tasks, family, **keywords)."""

    def make(tasks, family="llama", change=lambda model: None, **keywords):
        model = scoring_model(family)
        change(model)
        specs = [TaskSpec(task, reference=True) for task in tasks]
        return model, Scorer(model, scoring_tokenizer, specs, include=scoring_tasks, **keywords)

    return make


def every(scorer, tasks):
    return {task: range(scorer.documents[task]) for task in tasks}


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_close(found, wanted, tolerance=1e-4):
    """Each parameter's gradient, to a share of the largest norm."""
    assert found.keys() == wanted.keys()
    largest = max(float(one.norm()) for one in wanted.values())
    assert largest > 0
    for name, one in wanted.items():
        assert float((found[name] - one).norm()) <= tolerance * largest, name


@pytest.mark.parametrize(("task", "metric"), WAYS)
def test_values_are_those_of_the_scorer(make, task, metric):
    _, scorer = make([task])
    documents = list(range(scorer.documents[task]))[::2]
    found = scorer.backward({task: documents[::-1]}, {task: (metric, 1.0)})
    wanted = scorer.score({task: documents}).tasks[task].metrics[metric]
    assert found.climbed == {task: metric}
    assert found.values[task].dtype == np.float64
    np.testing.assert_allclose(found.values[task], wanted, rtol=1e-6, atol=1e-5)


def plain(model, scorer, terms, documents):
    """F, by one plain forward pass a request, and metrics written anew."""
    total = 0.0
    for task, (metric, share) in terms.items():
        built = scorer.tasks[task]
        for at in documents[task]:
            parts = []
            for slot in scorer.requests.slots[task][at]:
                for number in slot.numbers:
                    one = scorer.requests.likelihoods[number]
                    logits = model(input_ids=torch.tensor([one.row]), use_cache=False).logits[0, -len(one.answer) :]
                    logprobs = logits.float().log_softmax(-1)
                    parts.append(logprobs.gather(1, torch.tensor(one.answer)[:, None]).sum())
            sums = torch.stack([torch.zeros(()), *parts])[1:]  # a text may be empty
            if built.task.OUTPUT_TYPE == "multiple_choice":
                sums = sums[: len(built.task.doc_to_choice(built.documents[at].record))]  # acc_mutual_info has more
            if task == "rolling":
                value = sums.sum()
            else:
                gold = built.task.doc_to_target(built.documents[at].record)
                others = torch.cat([sums[:gold], sums[gold + 1 :]])
                value = {
                    "probability": sums.softmax(0)[gold],
                    "loglikelihood": sums[gold],
                    "margin": sums[gold] - others.max(),
                    "acc": sums.log_softmax(0)[gold],
                }[metric]
            total = total + share / len(documents[task]) * value
    return total


# Soft caps and scales of logits, biases of heads, tied embeddings, windows; ropes by length, recurrence, experts.
FAMILIES = ["llama", "qwen2", "gpt2", "gemma2", "gemma3", "cohere", "granite", "gptj", "phi3", "opt"]
FAMILIES += ["llama_dynamic", "llama_longrope", "mpt", "mamba", "qwen3_next", "llama4"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_plain_autograd(make, family):
    model, scorer = make(TERMS, family, batch_tokens=256)
    documents = {task: range(3) for task in TERMS}
    found = scorer.backward(documents, TERMS)
    mine = gradients(model)
    value = plain(model, scorer, TERMS, documents)
    value.backward()
    total = sum(share * found.values[task].mean() for task, (_, share) in TERMS.items())
    assert total == pytest.approx(value.item(), rel=1e-4)
    assert_close(mine, gradients(model))


def test_the_families_are_tiny_models():
    assert set(FAMILIES) <= set(CONFIGS)


def test_what_only_jumps_is_climbed_by_its_stand_in(make):
    terms = {"mc_letters": ("acc", 1.0), "mc_prefixes": ("acc_norm", 1.0)}
    model, scorer = make(terms)
    documents = every(scorer, terms)
    found = scorer.backward(documents, terms)
    assert found.climbed == dict.fromkeys(terms, STAND_IN)
    probabilities = scorer.score().tasks["mc_letters"].metrics["probability"]
    np.testing.assert_allclose(found.values["mc_letters"], np.log(probabilities), atol=1e-5)
    mine = gradients(model)
    plain(model, scorer, dict.fromkeys(terms, ("acc", 1.0)), documents).backward()
    assert_close(mine, gradients(model))


def test_texts_have_a_stand_in_where_their_likelihood_is_forwarded(make):
    _, scorer = make(["ll_target", "gen_numbers", "rolling"])
    terms = {"ll_target": ("acc", 1.0), "gen_numbers": ("exact_match", 1.0), "rolling": ("word_perplexity", 1.0)}
    found = scorer.backward({task: [0, 1] for task in terms}, terms)
    assert set(found.climbed.values()) == {"loglikelihood"}


def test_a_task_without_any_slope_is_refused_in_one_line(make, scoring_model, scoring_tokenizer, scoring_tasks):
    scorer = Scorer(scoring_model("llama"), scoring_tokenizer, [TaskSpec("gen_numbers")], include=scoring_tasks)
    with pytest.raises(ConfigError) as caught:
        scorer.backward({"gen_numbers": [0]}, {"gen_numbers": ("exact_match", 1.0)})
    assert str(caught.value).startswith("gen_numbers: exact_match has no slope, and the task has no log-likelihood")
    assert "\n" not in str(caught.value)
    _, scorer = make(["mc_bad_labels"])
    with pytest.raises(ConfigError, match="mc_bad_labels: acc has no slope"):
        scorer.backward({"mc_bad_labels": [0]}, {"mc_bad_labels": ("acc", 1.0)})


def test_terms_and_documents_are_of_the_same_tasks(make):
    _, scorer = make(["mc_letters"])
    with pytest.raises(ValueError, match="terms are of rolling, but documents of mc_letters"):
        scorer.backward({"mc_letters": [0]}, {"rolling": ("loglikelihood", 1.0)})


def test_a_model_that_nothing_can_be_left_in_is_refused(make):
    model, scorer = make(["mc_letters"])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        scorer.backward({"mc_letters": [0]}, {"mc_letters": ("acc", 1.0)})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "llama_dynamic"])
def test_micro_batches_change_nothing_but_the_last_digits(make, family):
    found = []
    for tokens in (1, 64, 100_000):
        model, scorer = make(TERMS, family, batch_tokens=tokens)
        shapes: list[torch.Size] = []
        model.base_model.register_forward_pre_hook(
            lambda _, __, keywords, shapes=shapes: shapes.append(keywords["input_ids"].shape), with_kwargs=True
        )
        one = scorer.backward(every(scorer, TERMS), TERMS)
        found.append((one, gradients(model), len(shapes)))
    (few, few_grads, many_passes), *rest = found
    for one, grads, passes in rest:
        assert one.tokens == few.tokens or passes < many_passes  # documents of one batch share equal rows
        for task in TERMS:
            np.testing.assert_allclose(one.values[task], few.values[task], atol=1e-4)
        assert_close(grads, few_grads)
    assert rest[-1][2] < rest[0][2] < many_passes


def test_rows_that_are_equal_are_forwarded_once(make):
    model, scorer = make(["mc_letters"])
    found = scorer.backward({"mc_letters": [0]}, {"mc_letters": ("acc", 1.0)})
    rows = {scorer.requests.likelihoods[slot.numbers[0]].row for slot in scorer.requests.slots["mc_letters"][0]}
    assert len(rows) == 1  # its choices are single tokens
    assert found.tokens == len(next(iter(rows)))
    assert gradients(model)


@contextmanager
def forgetting(model):
    """What a batch has added is forgotten if it fails."""
    before = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    try:
        yield
    except BaseException:
        for name, parameter in model.named_parameters():
            parameter.grad = before[name]
        raise


def test_memory_that_runs_out_on_the_way_forward_halves_the_batches(make):
    model, scorer = make(TERMS)
    wanted = scorer.backward(every(scorer, TERMS), TERMS), gradients(model)
    failures, hook = short_of_memory(model, lambda lines, columns: lines * columns <= 700)
    found = scorer.backward(every(scorer, TERMS), TERMS), gradients(model)
    assert failures
    assert found[0].values.keys() == wanted[0].values.keys()
    for task in TERMS:
        np.testing.assert_allclose(found[0].values[task], wanted[0].values[task], atol=1e-4)
    assert_close(found[1], wanted[1])
    failures.clear()
    scorer.backward(every(scorer, TERMS), TERMS)
    assert not failures  # later batches are small from the beginning
    hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 5, 30])
def test_memory_that_runs_out_on_the_way_back_counts_nothing_twice(make, at):
    model, scorer = make(TERMS, batch_tokens=600)
    wanted = scorer.backward(every(scorer, TERMS), TERMS), gradients(model)
    calls = []

    def fail(_):
        calls.append(1)
        if len(calls) == at:
            raise torch.OutOfMemoryError("provoked")

    hooks = [p.register_post_accumulate_grad_hook(fail) for p in model.parameters()]
    found = scorer.backward(every(scorer, TERMS), TERMS, lambda: forgetting(model)), gradients(model)
    assert len(calls) > at
    for task in TERMS:
        np.testing.assert_allclose(found[0].values[task], wanted[0].values[task], atol=1e-4)
    assert_close(found[1], wanted[1])
    for hook in hooks:
        hook.remove()


def test_one_document_that_does_not_fit_is_an_error(make):
    model, scorer = make(["mc_letters"])
    short_of_memory(model, lambda lines, columns: False)
    with pytest.raises(CandidateError, match="runs out of memory"):
        scorer.backward({"mc_letters": [0]}, {"mc_letters": ("acc", 1.0)})
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_logits_that_are_not_finite_are_an_error(make):
    model, scorer = make(["mc_letters"])
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(CandidateError, match="mc_letters: the model's logits are not finite"):
        scorer.backward({"mc_letters": [0]}, {"mc_letters": ("acc", 1.0)})
    assert not gradients(model)


def test_nothing_is_dropped_out(make):
    """GPT-2's configuration has dropout; a model in training would use it, also where layers are computed again."""
    model, scorer = make(["mc_letters"], "gpt2")
    model.train()
    found = []
    for _ in range(2):
        one = scorer.backward(every(scorer, ["mc_letters"]), {"mc_letters": ("margin", 1.0)})
        found.append((one.values["mc_letters"], gradients(model)))
    assert not model.training
    assert np.array_equal(found[0][0], found[1][0])
    assert all(torch.equal(one, found[1][1][name]) for name, one in found[0][1].items())
