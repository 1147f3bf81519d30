"""The score of a group held against stock lm-eval's, and what of groups is refused or left out."""

import shutil

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.scoring.fitness import Entry, Fitness
from evomerge.scoring.opening import open_scorer
from evomerge.searching.documents import Chosen
from evomerge.studies.candidates.score import measure, objective_of

# Tasks of 12, 10, 6 and 9 documents; the second and third have no acc_norm, the last no acc_norm and a perplexity.
GROUPS = {
    "by_size": "task: [mc_letters, mc_gaps]\naggregate_metric_list: [{metric: acc}]",
    "macro": """
task: [mc_letters, mc_gaps, ll_target]
aggregate_metric_list: {metric: acc, aggregation: mean, weight_by_size: false}
""",
    "outer": """
task:
  - inner
  - mc_prefixes
  - {group: unnamed, task: [mc_inputs], aggregate_metric_list: [{metric: acc, weight_by_size: true}]}
aggregate_metric_list:
  - {metric: acc, weight_by_size: false}
  - {metric: acc_norm, weight_by_size: true}
""",
    "inner": "task: [mc_letters, mc_gaps]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]",
    "twice": """
task: [inner, by_size, mc_prefixes]
aggregate_metric_list: [{metric: acc, weight_by_size: true}, {metric: acc, weight_by_size: false}]
""",
    "filtered": """
task: [gen_numbers, gen_flexible, gen_plain]
aggregate_metric_list: [{metric: exact_match, weight_by_size: false}]
""",
    "flexible": """
task: [gen_numbers, gen_flexible, gen_plain]
aggregate_metric_list: [{metric: exact_match, filter_list: flexible, weight_by_size: false}]
""",
    "strict_first": """
task: [gen_numbers, gen_numbers_2]
aggregate_metric_list: [{metric: exact_match, filter_list: [flexible, strict]}]
""",
    "silent": "task: [mc_letters, mc_gaps]",
    "counted": "task: [mc_pairs, mc_letters]\naggregate_metric_list: [{metric: f1}, {metric: exact_match}]",
    "medians": "task: [mc_median, mc_letters]\naggregate_metric_list: [{metric: acc, weight_by_size: false}]",
    "circle": "task: [{group: circle_2}]",
    "circle_2": "task: [circle]",
    "all_of_these": "task: [by_size, macro, outer, twice, filtered, flexible, strict_first]",
    "less": "task: [ll_target, ll_numbers]\naggregate_metric_list: [{metric: perplexity}]",
}
TASKS = {
    "gen_flexible": """
include: gen_numbers.yaml
custom_dataset: !function data.even_questions
filter_list:
  - name: flexible
    filter: [{function: regex, regex_pattern: "([a-z]+)"}, {function: take_first}]
""",
    "gen_plain": "include: gen_several.yaml",
    "gen_numbers_2": "include: gen_numbers.yaml\ncustom_dataset: !function data.even_questions",
    "mc_median": "include: mc_gaps.yaml\nmetric_list: [{metric: acc, aggregation: median, higher_is_better: true}]",
}
MORE_DATA = """

def even_questions(**_):
    return {"test": questions()["test"].select(range(0, 7, 2)), "train": questions()["train"]}
"""


@pytest.fixture(scope="module")
def folder(scoring_tasks, tmp_path_factory):
    """The tasks of the other tests, and groups of them."""
    made = tmp_path_factory.mktemp("groups") / "tasks"
    shutil.copytree(scoring_tasks, made)
    for name, text in GROUPS.items():
        (made / f"{name}.yaml").write_text(f"group: {name}\n{text}\n")
    for name, text in TASKS.items():
        (made / f"{name}.yaml").write_text(f"task: {name}\n{text}\n")
    with (made / "data.py").open("a") as file:
        file.write(MORE_DATA)
    return made


@pytest.fixture(scope="module")
def opened(folder, scoring_model, scoring_tokenizer):
    """Makes the scorer of one entry: `opened(task=..., metric=...)` -> scorer, objective."""

    def make(**entry):
        entries = (Entry(**entry),)
        fitness = Fitness(include=str(folder), search=entries)
        scorer = open_scorer(scoring_model("llama"), scoring_tokenizer, fitness, entries)
        assert scorer is not None
        return scorer, objective_of(entries, scorer.groups, scorer.documents)

    return make


@pytest.fixture(scope="module")
def stock(folder, scoring_model, scoring_tokenizer, scoring_stock):
    """Stock lm-eval's results of all groups, by one run."""
    return scoring_stock(scoring_model("llama"), scoring_tokenizer, ["all_of_these"], include=folder)


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("by_size", {"acc": "acc,none"}),
        ("macro", {"acc": "acc,none", "acc,none": "acc,none"}),
        ("outer", {"acc": "acc,none", "acc_norm": "acc_norm,none"}),
        ("inner", {"acc": "acc,none"}),
        ("twice", {"acc": "acc,none"}),
        (
            "filtered",
            {f"exact_match,{name}": f"exact_match,{name}" for name in ("strict", "flexible", "none")},
        ),
        ("flexible", {"exact_match": "exact_match,flexible"}),
        ("strict_first", {"exact_match": "exact_match,strict", "exact_match,flexible": "exact_match,flexible"}),
    ],
)
def test_the_score_of_a_group_is_lm_evals(name, metrics, opened, stock):
    for metric, printed in metrics.items():
        scorer, objective = opened(task=name, metric=metric)
        found = measure(objective, scorer.score(), scorer.groups)
        assert found.tasks[name] == pytest.approx(stock["results"][name][printed], abs=1e-12), metric
        assert all(printed in stock["results"][task] for task in scorer.documents)
        assert sum(member.share for member in scorer.groups[name].values()) == pytest.approx(1.0)


def test_a_limit_counts_in_the_sizes_as_in_lm_eval(opened, folder, scoring_model, scoring_tokenizer, scoring_stock):
    stock = scoring_stock(scoring_model("llama"), scoring_tokenizer, ["by_size"], include=folder, limit=7)
    scorer, objective = opened(task="by_size", metric="acc", limit=7)
    found = measure(objective, scorer.score(), scorer.groups)
    assert found.tasks["by_size"] == pytest.approx(stock["results"]["by_size"]["acc,none"], abs=1e-12)
    assert list(scorer.documents.values()) == [7, 5]


def test_the_groups_differ_from_the_mean_over_all_documents(opened):
    """Or the test above would prove nothing."""
    for name, metric in (
        ("macro", "acc"),
        ("outer", "acc"),
        ("twice", "acc"),
        ("filtered", "exact_match,flexible"),
    ):
        scorer, _ = opened(task=name, metric=metric)
        shares = [member.share for member in scorer.groups[name].values()]
        sizes = [scorer.documents[task] for task in scorer.groups[name]]
        assert not np.allclose(shares, np.array(sizes) / sum(sizes)), name


def test_what_is_climbed_has_the_shares_of_what_is_reported(opened):
    scorer, objective = opened(task="macro", metric="acc", climb="loglikelihood")
    report = scorer.score()
    found = measure(objective, report, scorer.groups)
    means = [report.tasks[name].metrics["loglikelihood"].mean() for name in ("mc_letters", "mc_gaps", "ll_target")]
    assert found.climbed["macro"] == pytest.approx(np.mean(means))


@pytest.mark.parametrize(
    ("name", "metric", "shares"),
    [
        ("silent", "acc", [12 / 17, 5 / 17]),  # lm-eval prints no score
        ("mc_small", "acc", [12 / 22, 10 / 22]),  # a tag
        ("macro", "loglikelihood", [1 / 3, 1 / 3, 1 / 3]),  # of which the group says nothing
        ("by_size", "probability", [12 / 17, 5 / 17]),
        ("twice", "margin", [24 / 44, 10 / 44, 10 / 44]),
    ],
)
def test_where_lm_eval_has_no_score_the_mean_is_ours(name, metric, shares, opened):
    scorer, _ = opened(task=name, metric=metric)
    assert [member.share for member in scorer.groups[name].values()] == pytest.approx(shares)


def test_tasks_without_the_metric_are_named_and_not_scored(opened):
    scorer, _ = opened(task="outer", metric="acc_norm")
    assert list(scorer.score().tasks) == ["mc_letters", "mc_prefixes"]
    assert scorer.note is not None
    assert "outer: mc_gaps, mc_inputs: no acc_norm, so no part in it, as in lm-eval" in scorer.note


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (
            {"task": "filtered", "metric": "exact_match"},
            "filtered: lm-eval has several scores of its exact_match; give 'exact_match,flexible' or "
            "'exact_match,none' or 'exact_match,strict'",
        ),
        ({"task": "silent", "metric": "acc_norm"}, "mc_gaps: has no metric 'acc_norm'"),
        ({"task": "macro", "metric": "acc", "climb": "margin"}, "ll_target: has no climb 'margin'"),
        ({"task": "counted", "metric": "f1"}, "mc_pairs: f1 is one number for all documents together"),
        ({"task": "mc_pairs", "metric": "f1"}, "mc_pairs: f1 is one number for all documents together"),
        ({"task": "medians", "metric": "acc"}, "mc_median: its acc is no mean over documents, so medians has none"),
        ({"task": "less", "metric": "perplexity"}, "ll_target: less perplexity is better"),
        ({"task": "circle", "metric": "acc"}, "task 'circle' cannot be built: a group in it holds itself"),
        ({"task": "macro", "metric": "acc,strict"}, "mc_letters: has no metric 'acc,strict'"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(entry, fault, opened):
    with pytest.raises(ConfigError) as error:
        opened(**entry)
    assert fault in str(error.value)


def test_a_task_by_itself_may_have_a_metric_that_is_no_mean(opened):
    scorer, objective = opened(task="mc_median", metric="acc")
    found = measure(objective, scorer.score(), scorer.groups)
    assert found.tasks["mc_median"] in (0.0, 0.5, 1.0)


def test_the_gradient_has_the_shares_of_the_group(opened):
    """Of all documents, and of a choice that says otherwise: the slope of the same weighted mean."""
    scorer, objective = opened(task="macro", metric="acc", climb="loglikelihood")
    every = Chosen({name: [*range(count)] for name, count in scorer.documents.items()}, objective.shares)
    some = Chosen({"mc_letters": [3, 5], "ll_target": [0]}, {"mc_letters": 0.2, "ll_target": 0.8})
    parameter = next(one for one in scorer._model.parameters() if one.ndim == 2)  # the embedding
    for chosen in (every, some):
        slopes = {}
        for task in chosen:
            parameter.grad = None
            scorer.backward({task: chosen[task]}, {task: ("loglikelihood", 1.0)})
            slopes[task] = parameter.grad.clone()
        parameter.grad = None
        scorer.backward(chosen, {task: ("loglikelihood", share) for task, share in chosen.shares.items()})
        wanted = sum(chosen.shares[task] * slope for task, slope in slopes.items())
        assert (parameter.grad - wanted).abs().max() < 1e-4 * wanted.abs().max()
        parameter.grad = None
