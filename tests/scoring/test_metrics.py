"""Smooth metrics, metrics of lm-eval that are not one number, and their names."""

import json
import math
import re

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from evomerge.errors import CandidateError, ConfigError
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer
from evomerge.scoring.smooth_metrics import choice_metrics


@pytest.fixture
def make(scoring_model, scoring_tokenizer, scoring_tasks):
    def make(*names, reference=True):
        specs = [TaskSpec(name, reference=reference) for name in names]
        return Scorer(scoring_model("llama"), scoring_tokenizer, specs, include=scoring_tasks)

    return make


def test_smooth_metrics_of_one_gold_choice():
    found = choice_metrics(np.log([0.1, 0.2, 0.5]), [1])
    assert found == pytest.approx({"probability": 0.25, "loglikelihood": math.log(0.2), "margin": math.log(0.4)})


def test_smooth_metrics_of_several_gold_choices():
    found = choice_metrics(np.log([0.1, 0.2, 0.5]), [0, 1])
    assert found == pytest.approx({"probability": 0.375, "loglikelihood": math.log(0.3), "margin": math.log(0.4)})


def test_smooth_metrics_of_very_unlikely_answers_are_finite():
    found = choice_metrics(np.array([-5000.0, -6000.0]), [0])
    assert found == pytest.approx({"probability": 1.0, "loglikelihood": -5000.0, "margin": 1000.0})


def test_a_positive_margin_is_an_accurate_answer(make):
    for name, score in make("mc_letters", "mc_prefixes", "mc_inputs", "mc_several").score().tasks.items():
        assert ((score.metrics["margin"] > 0) == (score.metrics["acc"] > 0)).all(), name
        assert ((score.metrics["probability"] > 0) & (score.metrics["probability"] <= 1)).all()


def test_metrics_are_float64_per_document_and_smooth_aggregates_are_means(make):
    score = make("mc_letters").score().tasks["mc_letters"]
    assert score.documents.tolist() == list(range(12))
    assert score.documents.dtype == np.int64
    assert all(column.shape == (12,) and column.dtype == np.float64 for column in score.metrics.values())
    assert score.aggregates["margin"] == pytest.approx(score.metrics["margin"].mean())


def test_a_metric_without_one_number_per_document_keeps_its_aggregate_only(make):
    scorer = make("mc_letters")
    assert scorer.metrics("mc_letters") == ("acc", "acc_norm", "probability", "loglikelihood", "margin")
    score = scorer.score().tasks["mc_letters"]
    assert "brier_score" not in score.metrics
    assert score.aggregates["brier_score"] > 0


def test_smooth_metrics_where_contexts_differ_and_choices_are_asked_for_twice(make):
    """Winogrande's form, with acc_mutual_info: three contexts, then three choices without any."""
    scorer = make("mc_inputs")
    score = scorer.score().tasks["mc_inputs"]
    assert scorer.metrics("mc_inputs")[:2] == ("acc", "acc_mutual_info")
    for at, document in enumerate(scorer._tasks["mc_inputs"].documents):
        assert [instance.args[0] == "" for instance in document.instances] == [False] * 3 + [True] * 3
        logprobs = np.array([instance.resps[0][0] for instance in document.instances[:3]])
        for name, value in choice_metrics(logprobs, [at % 3]).items():
            assert score.metrics[name][at] == value


def test_f1_and_mcc_have_no_number_for_one_document(make):
    scorer = make("mc_pairs")
    assert scorer.metrics("mc_pairs") == ("acc_bytes", "exact_match", "probability", "loglikelihood", "margin")
    assert {"f1", "mcc"} < set(scorer.score().tasks["mc_pairs"].aggregates)


def test_a_task_with_labels_outside_its_choices_has_no_smooth_metrics(make):
    assert make("mc_bad_labels").metrics("mc_bad_labels") == ("acc",)


def test_a_loglikelihood_task_has_its_answers_loglikelihood(make):
    scorer = make("ll_target")
    assert scorer.metrics("ll_target") == ("perplexity", "acc", "loglikelihood")
    score = scorer.score().tasks["ll_target"]
    assert score.aggregates["perplexity"] == pytest.approx(math.exp(-score.metrics["loglikelihood"].mean()))
    assert not scorer.higher_is_better("ll_target", "perplexity")
    assert scorer.higher_is_better("ll_target", "loglikelihood")


def test_perplexities_of_each_document_and_of_all(make):
    scorer = make("rolling")
    official, smooth = scorer.metrics("rolling")[:3], scorer.metrics("rolling")[3:]
    assert official == ("word_perplexity", "byte_perplexity", "bits_per_byte")
    assert smooth == ("loglikelihood", "loglikelihood_per_word", "loglikelihood_per_byte")
    assert not any(scorer.higher_is_better("rolling", name) for name in official)
    assert all(scorer.higher_is_better("rolling", name) for name in smooth)
    score = scorer.score().tasks["rolling"]
    texts = [document.record["text"] for document in scorer._tasks["rolling"].documents]
    words = np.array([len(re.split(r"\s+", text)) for text in texts])
    sizes = np.array([len(text.encode()) for text in texts])
    nats = score.metrics["loglikelihood"]
    np.testing.assert_allclose(score.metrics["word_perplexity"], np.exp(-nats / words))
    np.testing.assert_allclose(score.metrics["loglikelihood_per_word"], nats / words)
    np.testing.assert_allclose(score.metrics["loglikelihood_per_byte"], nats / np.maximum(sizes, 1))
    assert score.aggregates["word_perplexity"] == pytest.approx(np.exp(-nats.sum() / words.sum()))
    assert score.aggregates["bits_per_byte"] == pytest.approx(-nats.sum() / sizes.sum() / math.log(2))
    assert score.aggregates["loglikelihood_per_byte"] == pytest.approx((nats / np.maximum(sizes, 1)).mean())


def test_a_text_without_tokens_has_the_loglikelihood_zero_and_no_perplexity(
    scoring_model, scoring_tokenizers, scoring_tasks
):
    specs = [TaskSpec("rolling")]
    scorer = Scorer(scoring_model("llama"), scoring_tokenizers[False], specs, include=scoring_tasks)
    metrics = scorer.score().tasks["rolling"].metrics
    assert np.flatnonzero(metrics["loglikelihood"] == 0).tolist() == [2]
    assert np.flatnonzero(np.isnan(metrics["byte_perplexity"])).tolist() == [2]
    assert metrics["loglikelihood_per_byte"][2] == 0
    assert scorer.score({"rolling": [2]}).tokens == 0


def test_words_and_bytes_are_those_that_the_task_counts(scoring_model, scoring_tokenizer, scoring_builtin_tasks):
    specs = [TaskSpec("wikitext")]
    scorer = Scorer(scoring_model("llama"), scoring_tokenizer, specs, include=scoring_builtin_tasks)
    metrics = scorer.score().tasks["wikitext"].metrics
    rows = (scoring_builtin_tasks / "wikitext_test.jsonl").read_text().splitlines()
    words = [len(re.split(r"\s+", json.loads(row)["page"])) for row in rows]
    np.testing.assert_allclose(metrics["loglikelihood"] / metrics["loglikelihood_per_word"], words)


def test_a_perplexity_beyond_the_floats_is_infinite(make):
    scorer = make("rolling")
    with torch.no_grad():
        scorer._model.model.norm.weight.mul_(1000)
    score = scorer.score().tasks["rolling"]
    assert score.aggregates["word_perplexity"] == math.inf
    assert math.isfinite(score.aggregates["loglikelihood_per_word"])


def test_several_references_add_their_probabilities(make, scoring_tokenizer):
    scorer = make("gen_several")
    assert scorer.metrics("gen_several") == ("exact_match", "loglikelihood")
    assert scorer.higher_is_better("gen_several", "loglikelihood")
    found = scorer.score().tasks["gen_several"].metrics["loglikelihood"]
    model = HFLM(pretrained=scorer._model, tokenizer=scoring_tokenizer, batch_size=1)
    for at, document in enumerate(scorer._tasks["gen_several"].documents):
        answers = model.loglikelihood(list(document.references), disable_tqdm=True)
        assert found[at] == pytest.approx(math.log(sum(math.exp(nats) for nats, _ in answers)), abs=1e-4)


def test_a_document_without_a_reference_is_named(make):
    assert "loglikelihood" not in make("gen_blank", reference=False).metrics("gen_blank")
    with pytest.raises(ConfigError, match=r"document \d+ has no reference answer"):
        make("gen_blank")


def test_a_metric_of_the_task_stands_before_a_smooth_one_of_its_name(make):
    scorer = make("gen_own_likelihood")
    assert scorer.score().tasks["gen_own_likelihood"].metrics["loglikelihood"].tolist() == [7.0] * 7
    assert not scorer.higher_is_better("gen_own_likelihood", "loglikelihood")


@pytest.mark.parametrize("name", ["rolling", "gen_several"])
def test_numbers_that_are_not_finite_fail_the_candidate(name, make):
    scorer = make(name)
    with torch.no_grad():
        scorer._model.model.norm.weight[0] = math.nan
    with pytest.raises(CandidateError, match=f"{name}.*not finite"):
        scorer.score()


def test_several_filters_name_their_metrics(make):
    assert make("gen_numbers").metrics("gen_numbers") == (
        "exact_match,strict",
        "exact_match",
        "exact_match,flexible",
        "loglikelihood",
    )


def test_metric_code_that_fails_on_an_answer_fails_the_candidate(scoring_model, scoring_tokenizer, scoring_tasks):
    specs = [TaskSpec("gen_own_metric")]
    scorer = Scorer(scoring_model("llama"), scoring_tokenizer, specs, include=scoring_tasks)
    assert scorer.metrics("gen_own_metric") == ("words", "known")
    with pytest.raises(CandidateError, match="gen_own_metric: its metrics fail: ZeroDivisionError"):
        scorer.score()


def test_a_metric_that_some_documents_lack_fails_the_candidate(scoring_model, scoring_tokenizer, scoring_tasks):
    specs = [TaskSpec("gen_sometimes")]
    scorer = Scorer(scoring_model("llama"), scoring_tokenizer, specs, include=scoring_tasks)
    with pytest.raises(CandidateError, match="'even' has no number for some document"):
        scorer.score()
