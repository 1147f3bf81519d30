"""Every number is held against stock `lm_eval.simple_evaluate` with HFLM on the same float32 weights."""

import numpy as np
import pytest

from evomerge.scoring import Scorer, TaskSpec

CHOICE = ("mc_letters", "mc_prefixes", "mc_gaps", "mc_several", "mc_bad_labels", "mc_long")
LIKELIHOOD = ("ll_target", "ll_empty_context")
GENERATION = ("gen_numbers", "gen_words")
WITH_SHOTS = ("mc_letters", "mc_prefixes", "ll_target", "gen_numbers")
FAMILIES = ("llama", "qwen2", "gpt2", "gemma2", "gemma3", "cohere", "granite")


def responses(scorer, task):
    """What the scorer's model answered: one list per document."""
    return [[instance.resps for instance in document.instances] for document in scorer._tasks[task].documents]


def assert_equal_to_stock(scorer, report, stock):
    for task, score in report.tasks.items():
        samples = stock["samples"][task]
        answered = responses(scorer, task)
        assert {sample["doc_id"] for sample in samples} == set(score.documents.tolist())
        for sample in samples:
            ours, theirs = answered[sample["doc_id"]], sample["resps"]
            assert len(ours) == len(theirs)
            for mine, other in zip(ours, theirs, strict=True):
                if isinstance(other[0], str):
                    assert mine == other
                else:
                    assert mine[0][0] == pytest.approx(other[0][0], abs=1e-4)
                    assert mine[0][1] == other[0][1]
        assert_metrics_equal(score, samples, stock["results"][task])


def assert_metrics_equal(score, samples, results):
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    compared = 0
    for metric, column in score.metrics.items():
        name, _, key = metric.partition(",")
        theirs = [sample for sample in samples if sample["filter"] == (key or filters[0])]
        if name in theirs[0]:
            np.testing.assert_allclose(column, [float(sample[name]) for sample in theirs], rtol=0, atol=1e-4)
            compared += 1
    assert compared
    for name, value in results.items():
        metric, _, key = name.partition(",")
        if key and not metric.endswith("_stderr"):
            ours = score.aggregates[name if len(filters) > 1 else metric]
            assert ours == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(("family", "bos"), [*((family, True) for family in FAMILIES), ("llama", False)])
def test_all_output_types_equal_stock_lm_eval(
    family, bos, scoring_model, scoring_tokenizers, scoring_tasks, scoring_stock
):
    names = (*CHOICE, *LIKELIHOOD, *GENERATION)
    model, tokenizer = scoring_model(family), scoring_tokenizers[bos]
    scorer = Scorer(model, tokenizer, [TaskSpec(name) for name in names], include=scoring_tasks)
    report = scorer.score()
    assert_equal_to_stock(scorer, report, scoring_stock(model, tokenizer, names))
    assert not scorer.full_forward
    assert report.cut_prompts == {name: 4 if name in ("mc_long", "gen_words") else 0 for name in names}


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_few_shot_and_chat_template_equal_stock_lm_eval(
    family, chat, scoring_model, scoring_tokenizer, scoring_tasks, scoring_stock
):
    model = scoring_model(family)
    specs = [TaskSpec(name, num_fewshot=2) for name in WITH_SHOTS]
    scorer = Scorer(model, scoring_tokenizer, specs, include=scoring_tasks, apply_chat_template=chat)
    stock = scoring_stock(model, scoring_tokenizer, WITH_SHOTS, num_fewshot=2, apply_chat_template=chat)
    assert_equal_to_stock(scorer, scorer.score(), stock)


def test_a_limit_takes_lm_evals_documents(scoring_model, scoring_tokenizer, scoring_tasks, scoring_stock):
    model = scoring_model("llama")
    specs = [TaskSpec("mc_letters", num_fewshot=3, limit=5), TaskSpec("gen_numbers", num_fewshot=3, limit=5)]
    scorer = Scorer(model, scoring_tokenizer, specs, include=scoring_tasks)
    stock = scoring_stock(model, scoring_tokenizer, ["mc_letters", "gen_numbers"], num_fewshot=3, limit=5)
    assert scorer.documents == {"mc_letters": 5, "gen_numbers": 5}
    assert_equal_to_stock(scorer, scorer.score(), stock)


@pytest.mark.parametrize("name", ["mc_group", "mc_small"], ids=["group", "tag"])
def test_a_group_or_tag_stands_for_its_tasks(name, scoring_model, scoring_tokenizer, scoring_tasks, scoring_stock):
    model = scoring_model("llama")
    scorer = Scorer(model, scoring_tokenizer, [TaskSpec(name)], include=scoring_tasks)
    assert scorer.expanded == {name: ("mc_letters", "mc_prefixes")}
    stock = scoring_stock(model, scoring_tokenizer, [name])
    assert_equal_to_stock(scorer, scorer.score(), stock)
