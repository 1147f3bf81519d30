"""Ours held against stock lm-eval's, answer by answer and metric by metric."""

import numpy as np
import pytest


def responses(scorer, task):
    """What the scorer's model answered: one list per document."""
    return [[instance.resps for instance in document.instances] for document in scorer.tasks[task].documents]


def assert_equal_to_stock(scorer, report, stock):
    assert set(report.tasks) == set(stock["samples"])
    for task, score in report.tasks.items():
        samples = stock["samples"][task]
        answered = responses(scorer, task)
        assert {sample["doc_id"] for sample in samples} == set(score.documents.tolist())
        for sample in samples:
            ours, theirs = answered[sample["doc_id"]], sample["resps"]
            assert len(ours) == len(theirs)
            for mine, other in zip(ours, theirs, strict=True):
                assert_answers_equal(mine, other)
        assert_metrics_equal(score, samples, stock["results"][task])


def assert_answers_equal(ours, theirs):
    """Texts and greedy flags are the same, log-likelihoods nearly."""
    if isinstance(theirs[0], str):
        assert ours == theirs
    elif isinstance(theirs[0], tuple):
        assert ours[0][0] == pytest.approx(theirs[0][0], abs=1e-4)
        assert ours[0][1] == theirs[0][1]
    else:
        # lm-eval sums each window in float32, which holds thousands of nats to no more digits.
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4, rel=1e-6)


def assert_metrics_equal(score, samples, results):
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    compared = 0
    for metric, column in score.metrics.items():
        name, _, key = metric.partition(",")
        theirs = [sample[name] for sample in samples if name in sample and sample["filter"] == (key or filters[0])]
        if theirs and not isinstance(theirs[0], tuple):
            np.testing.assert_allclose(column, np.array(theirs, dtype=float), rtol=0, atol=1e-4)
            compared += 1
    for name, value in results.items():
        metric, _, key = name.partition(",")
        if key and not metric.endswith("_stderr"):
            ours = score.aggregates[name if len(filters) > 1 else metric]
            assert ours == pytest.approx(value, rel=1e-4)
            compared += 1
    assert compared
