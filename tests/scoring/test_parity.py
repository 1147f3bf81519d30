"""Every number is held against stock `lm_eval.simple_evaluate` with HFLM on the same float32 weights."""

import numpy as np
import pytest

from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer
from tests.helpers.builtin_tasks import BUILT_IN
from tests.helpers.parity import assert_equal_to_stock

CHOICE = ("mc_letters", "mc_prefixes", "mc_gaps", "mc_inputs", "mc_pairs", "mc_several", "mc_bad_labels", "mc_long")
LIKELIHOOD = ("ll_target", "ll_empty_context", "rolling")
GENERATION = ("gen_numbers", "gen_words", "gen_several", "gen_choice")
WITH_SHOTS = ("mc_letters", "mc_first", "mc_prefixes", "mc_inputs", "ll_target", "gen_numbers", "gen_prefixed")
BUILT_IN_WITH_SHOTS = ("arc_easy", "mmlu_anatomy", "winogrande", "gsm8k")
FAMILIES = ("llama", "qwen2", "gpt2", "gemma3")
# Their logits are scaled or capped; the rest is as in the others.
FAMILIES_WITH_FINISH = ("gemma2", "cohere", "granite")


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES_WITH_FINISH)
def test_scaled_and_capped_logits_equal_stock_lm_eval(
    family, scoring_model, scoring_tokenizer, scoring_tasks, scoring_stock
):
    names = ("mc_letters", "mc_prefixes", "ll_target", "gen_numbers")
    model = scoring_model(family)
    scorer = Scorer(model, scoring_tokenizer, [TaskSpec(name) for name in names], include=scoring_tasks)
    assert_equal_to_stock(scorer, scorer.score(), scoring_stock(model, scoring_tokenizer, names))
    assert not scorer.full_forward


@pytest.mark.slow
@pytest.mark.parametrize(("family", "bos"), [("llama", True), ("qwen2", False), ("gpt2", False), ("gemma3", True)])
def test_lm_evals_own_tasks_equal_stock_lm_eval(
    family, bos, scoring_model, scoring_tokenizers, scoring_builtin_tasks, scoring_stock
):
    model, tokenizer = scoring_model(family), scoring_tokenizers[bos]
    scorer = Scorer(model, tokenizer, [TaskSpec(name) for name in BUILT_IN], include=scoring_builtin_tasks)
    stock = scoring_stock(model, tokenizer, BUILT_IN, scoring_builtin_tasks)
    assert_equal_to_stock(scorer, scorer.score(), stock)
    windows = [len(slot.numbers) for (slot,) in scorer.requests.slots["wikitext"]]
    assert windows[0] == int(bos)
    assert windows[-1] > 3


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("shots", "chat"), [(5, False), (1, True), (0, True)])
def test_lm_evals_own_tasks_with_shots_and_chat_template_equal_stock_lm_eval(
    shots, chat, scoring_model, scoring_tokenizer, scoring_builtin_tasks, scoring_stock
):
    model, folder = scoring_model("qwen2"), scoring_builtin_tasks
    specs = [TaskSpec(name, num_fewshot=shots) for name in BUILT_IN_WITH_SHOTS]
    scorer = Scorer(model, scoring_tokenizer, specs, include=folder, apply_chat_template=chat)
    keywords = {"num_fewshot": shots, "apply_chat_template": chat}
    stock = scoring_stock(model, scoring_tokenizer, BUILT_IN_WITH_SHOTS, folder, **keywords)
    report = scorer.score()
    assert_equal_to_stock(scorer, report, stock)
    assert (report.cut_prompts["gsm8k"] == 5) == (shots == 5)


@pytest.mark.parametrize(
    ("name", "same", "chat"),
    [
        ("gen_numbers", "ll_numbers", False),
        ("gen_numbers", "ll_numbers_chat", True),
        ("gen_prefixed", "ll_prefixed", False),
        ("gen_prefixed", "ll_prefixed", True),
    ],
)
@pytest.mark.parametrize("shots", [0, 2])
def test_references_equal_a_task_of_stock_lm_eval_that_asks_for_them(
    name, same, chat, shots, scoring_model, scoring_tokenizer, scoring_tasks, scoring_stock
):
    """The likelihood task has the same prompts, and the answer as the examples in these prompts have it."""
    model, spec = scoring_model("llama"), TaskSpec(name, num_fewshot=shots, reference=True)
    scorer = Scorer(model, scoring_tokenizer, [spec], include=scoring_tasks, apply_chat_template=chat)
    stock = scoring_stock(model, scoring_tokenizer, [same], num_fewshot=shots, apply_chat_template=chat)
    samples = stock["samples"][same]
    prompts = [document.references[0].args[0] for document in scorer.tasks[name].documents]
    assert prompts == [sample["arguments"][0][0] for sample in samples]
    wanted = [sample["resps"][0][0][0] for sample in samples]
    assert scorer.score().tasks[name].metrics["loglikelihood"].tolist() == pytest.approx(wanted, abs=1e-4)


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
    assert list(scorer.groups[name]) == ["mc_letters", "mc_prefixes"]
    stock = scoring_stock(model, scoring_tokenizer, [name])
    assert_equal_to_stock(scorer, scorer.score(), stock)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_subset_equals_the_same_rows_of_all(family, scoring_model, scoring_tokenizer, scoring_tasks):
    """For each output type, and for references."""
    specs = [
        TaskSpec(name, reference=True)
        for name in ("mc_letters", "mc_inputs", "ll_target", "rolling", "gen_numbers", "gen_several")
    ]
    scorer = Scorer(scoring_model(family), scoring_tokenizer, specs, include=scoring_tasks)
    whole = scorer.score()
    chosen = {spec.task: [5, 1, 3] for spec in specs}
    part = scorer.score(chosen)
    assert part.tasks.keys() == whole.tasks.keys()
    for name, score in part.tasks.items():
        assert score.documents.tolist() == [1, 3, 5]
        assert score.metrics.keys() == whole.tasks[name].metrics.keys() == set(scorer.metrics(name))
        for metric, column in score.metrics.items():
            rows = whole.tasks[name].metrics[metric][[1, 3, 5]]
            np.testing.assert_allclose(column, rows, rtol=1e-6, atol=1e-5)
    assert 0 < part.tokens < whole.tokens
