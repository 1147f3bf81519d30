"""The long-context tasks as lm-eval builds them; prompts that are cut are told, or kept if the model reads more."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from evomerge.errors import ConfigError
from evomerge.files import shipped
from evomerge.files.yaml import read_yaml
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer
from tests.helpers.parity import assert_equal_to_stock
from tests.helpers.tiny_models import MAX_LENGTH

SHIPPED = shipped.folder("fitness") / "tasks"
FITNESS = read_yaml(shipped.folder("fitness") / "long_context.yaml")
ENTRIES = [*FITNESS["search"], *FITNESS["holdout"]]
NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml") if not path.stem.startswith("tiny_"))
OWN = {
    "passkey_short": ("_passkey", {"length": 150, "count": 4}),
    "passkey_long": ("_passkey", {"length": 700, "count": 6, "text": "python"}),
    "needle_short": ("_needle", {"length": 150, "count": 3, "distractors": 1}),
    "needle_file": ("_needle", {"length": 400, "count": 3, "text": "text.txt"}),
    "long_tail_short": ("_long_tail", {"context": 60, "longest": 600, "tail": 40, "count": 5}),
    "long_tail_long": ("_long_tail", {"context": 600, "longest": 600, "tail": 40, "count": 5}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A person's own tasks, short ones, beside copies of the shipped templates."""
    path = tmp_path_factory.mktemp("tasks")
    for name in ("_passkey", "_needle", "_long_tail", "long_context.py"):
        shutil.copy(SHIPPED / name, path)
    (path / "text.txt").write_text("A file of one's own, about the red cat and the green dog. " * 100)
    for name, (template, options) in OWN.items():
        (path / f"{name}.yaml").write_text(
            yaml.safe_dump({"include": template, "task": name, "dataset_kwargs": options})
        )
    return path


@pytest.fixture
def make(scoring_model, scoring_tokenizer, folder):
    def make(*names, family="llama", model=None, **keywords):
        model = model or scoring_model(family)
        return Scorer(model, scoring_tokenizer, [TaskSpec(name) for name in names], include=folder, **keywords)

    return make


def test_every_shipped_task_has_a_place_in_a_series():
    used = {entry["task"] for entry in ENTRIES}
    assert used <= set(NAMES)
    assert {name.removesuffix("_test") for name in NAMES} == {name.removesuffix("_test") for name in used}


@pytest.mark.slow
def test_every_shipped_task_is_built(scoring_model, scoring_tokenizer):
    specs = [TaskSpec(name, limit=1) for name in NAMES]
    scorer = Scorer(scoring_model("llama"), scoring_tokenizer, specs, include=SHIPPED, max_length=20_000)
    assert scorer.note is None
    for name in NAMES:
        (document,) = scorer.tasks[name].documents
        length = int(name.removesuffix("_test").rsplit("_", 1)[1])
        longest = max(len("".join(instance.args).encode()) for instance in document.instances)
        assert length - 60 < longest <= length + (512 if name.startswith("long_tail") else 0)
    for entry in ENTRIES:
        for metric in (entry["metric"], entry.get("climb", entry["metric"])):
            assert metric in scorer.metrics(entry["task"])
            assert scorer.higher_is_better(entry["task"], metric)


@pytest.mark.slow
@pytest.mark.parametrize("bos", [True, False])
def test_scores_equal_stock_lm_eval(bos, scoring_model, scoring_tokenizers, scoring_stock, folder):
    model, tokenizer = scoring_model("llama"), scoring_tokenizers[bos]
    scorer = Scorer(model, tokenizer, [TaskSpec(name) for name in OWN], include=folder)
    report = scorer.score()
    assert_equal_to_stock(scorer, report, scoring_stock(model, tokenizer, OWN, include=folder))
    assert report.cut_prompts == scorer.cut


def test_a_tails_score_is_nats_per_byte(make):
    scorer = make("long_tail_short")
    score = scorer.score().tasks["long_tail_short"]
    sizes = [len(document.record["tail"].encode()) for document in scorer.tasks["long_tail_short"].documents]
    np.testing.assert_allclose(
        score.metrics["loglikelihood_per_byte"], score.metrics["loglikelihood"] / np.array(sizes)
    )
    assert score.aggregates["loglikelihood_per_byte"] < 0


def test_tails_can_be_climbed_by_gradient(make):
    scorer = make("long_tail_short", "passkey_short")
    terms = {"long_tail_short": ("loglikelihood_per_byte", 0.5), "passkey_short": ("probability", 0.5)}
    found = scorer.backward({"long_tail_short": [0, 1], "passkey_short": [0]}, terms)
    assert found.climbed == {"long_tail_short": "loglikelihood", "passkey_short": "probability"}


def test_cut_prompts_are_counted_and_told_before_anything_is_scored(make):
    scorer = make("passkey_short", "passkey_long", "long_tail_long")
    assert scorer.cut == {"passkey_short": 0, "passkey_long": 6, "long_tail_long": 5}
    assert scorer.max_length == MAX_LENGTH
    assert scorer.note == (
        f"prompts are cut from the left to {MAX_LENGTH} tokens, the model's maximum length: documents of "
        "passkey_long (6 of 6), long_tail_long (5 of 5); shorten the prompts, or extend the model's context and "
        "raise max_length with it"
    )


def test_there_is_nothing_to_tell_where_nothing_is_cut(make):
    scorer = make("passkey_short", "long_tail_short")
    assert scorer.cut == {"passkey_short": 0, "long_tail_short": 0}
    assert scorer.note is None


def test_both_notes_are_told(make):
    slow, cut = make("passkey_long", family="llama_dynamic").note.splitlines()
    assert "forwarded by itself" in slow
    assert "are cut from the left" in cut


@pytest.mark.slow
def test_a_greater_length_keeps_the_prompts(make, folder, scoring_model, scoring_tokenizer, scoring_stock):
    names = ("passkey_long", "long_tail_long", "needle_file")
    model = scoring_model("llama")
    scorer = make(*names, model=model, max_length=1024)
    assert (scorer.max_length, scorer.note) == (1024, None)
    assert set(scorer.cut.values()) == {0}
    longer = scoring_model("llama")
    longer.config.max_position_embeddings = 1024  # what lm-eval reads
    stock = scoring_stock(longer, scoring_tokenizer, names, include=folder)
    assert_equal_to_stock(scorer, scorer.score(), stock)
    assert scorer.score().cut_prompts == dict.fromkeys(names, 0)


def test_a_cut_tail_is_scored_as_if_there_were_no_more_context(make):
    """What makes silence dangerous: the score looks healthy."""
    cut = make("long_tail_long").score().tasks["long_tail_long"].metrics["loglikelihood"]
    whole = make("long_tail_long", max_length=1024).score().tasks["long_tail_long"].metrics["loglikelihood"]
    assert np.isfinite(cut).all()
    assert (cut != whole).all()


def test_prompts_of_generations_are_kept_too(scoring_model, scoring_tokenizer, scoring_tasks):
    specs = [TaskSpec("gen_words")]
    model = scoring_model("llama")
    assert Scorer(model, scoring_tokenizer, specs, include=scoring_tasks).cut["gen_words"] == 4
    assert Scorer(model, scoring_tokenizer, specs, include=scoring_tasks, max_length=1000).cut["gen_words"] == 0


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_learned_positions_cannot_be_passed(family, make):
    with pytest.raises(ConfigError, match=rf"max_length: is 161, but \w+ has learned {MAX_LENGTH} positions"):
        make("passkey_short", family=family, max_length=MAX_LENGTH + 1)
    assert make("passkey_short", family=family, max_length=MAX_LENGTH).max_length == MAX_LENGTH


def test_a_length_of_nothing_is_refused(make):
    with pytest.raises(ConfigError, match="max_length: is 1; give 2 or more"):
        make("passkey_short", max_length=1)


def test_wrong_options_of_a_task_are_one_line_with_its_file(folder, scoring_model, scoring_tokenizer, tmp_path):
    shutil.copytree(folder, tmp_path / "tasks")
    content = {"include": "_passkey", "task": "passkey_bad", "dataset_kwargs": {"lenght": 300, "length": 9}}
    (tmp_path / "tasks" / "passkey_bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        Scorer(scoring_model("llama"), scoring_tokenizer, [TaskSpec("passkey_bad")], include=tmp_path / "tasks")
    assert len(str(caught.value).splitlines()) == 1
    assert "passkey_bad.yaml: task 'passkey_bad' cannot be built" in str(caught.value)
    assert "lenght: is no option; did you mean 'length'?" in str(caught.value)


def test_the_model_is_left_as_it_was(make, scoring_model):
    model = scoring_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make("passkey_long", model=model, max_length=1024).score()
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.max_position_embeddings == MAX_LENGTH
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
