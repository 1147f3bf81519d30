"""Smooth metrics, metrics of lm-eval that are not one number, and their names."""

import math

import numpy as np
import pytest

from evomerge.errors import CandidateError
from evomerge.scoring import Scorer, TaskSpec
from evomerge.scoring.metrics import choice_metrics


@pytest.fixture
def make(scoring_model, scoring_tokenizer, scoring_tasks):
    def make(*names):
        return Scorer(
            scoring_model("llama"), scoring_tokenizer, [TaskSpec(name) for name in names], include=scoring_tasks
        )

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
    for name, score in make("mc_letters", "mc_prefixes", "mc_several").score().tasks.items():
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


def test_a_task_with_labels_outside_its_choices_has_no_smooth_metrics(make):
    assert make("mc_bad_labels").metrics("mc_bad_labels") == ("acc",)


def test_a_loglikelihood_task_has_its_answers_loglikelihood(make):
    scorer = make("ll_target")
    assert scorer.metrics("ll_target") == ("perplexity", "acc", "loglikelihood")
    score = scorer.score().tasks["ll_target"]
    assert score.aggregates["perplexity"] == pytest.approx(math.exp(-score.metrics["loglikelihood"].mean()))
    assert not scorer.higher_is_better("ll_target", "perplexity")
    assert scorer.higher_is_better("ll_target", "loglikelihood")


def test_several_filters_name_their_metrics(make):
    assert make("gen_numbers").metrics("gen_numbers") == (
        "exact_match,strict",
        "exact_match",
        "exact_match,flexible",
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
