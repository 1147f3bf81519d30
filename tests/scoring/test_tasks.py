"""Finding and building tasks: silence, faults in one line, documents told apart."""

import random

import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager

from evomerge.errors import ConfigError
from evomerge.scoring import task_names
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer


@pytest.fixture
def make(scoring_model, scoring_tokenizer, scoring_tasks):
    model = scoring_model("llama")

    def make(*names_or_specs, **keywords):
        keywords.setdefault("include", scoring_tasks)
        chosen = [TaskSpec(spec) if isinstance(spec, str) else spec for spec in names_or_specs]
        return Scorer(model, scoring_tokenizer, chosen, **keywords)

    return make


def refused(make, *specs, **keywords):
    """The message of a refusal: each fault one line."""
    with pytest.raises(ConfigError) as caught:
        make(*specs, **keywords)
    assert len(str(caught.value).splitlines()) == len(caught.value.faults)
    return str(caught.value)


def test_nothing_is_printed_or_logged(make, capfd, caplog):
    make("mc_letters", "gen_numbers", "mc_bad_labels").score()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_global_random_generators_stay_where_they_were(make):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    wanted = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    make(TaskSpec("mc_letters", num_fewshot=2), "gen_numbers").score()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == wanted


def test_prompts_do_not_depend_on_the_other_tasks(make):
    few = TaskSpec("mc_letters", num_fewshot=3)
    alone, among = make(few), make("mc_prefixes", few, "gen_numbers")

    def prompts(scorer):
        return [document.instances[0].args for document in scorer.tasks["mc_letters"].documents]

    assert prompts(alone) == prompts(among)


def test_unknown_tasks_are_all_named_with_their_nearest(make, scoring_tasks, tmp_path):
    (tmp_path / "broken.yaml").write_text("task: [unclosed")
    with pytest.raises(ConfigError) as caught:
        make("arc_chalenge", "no_such_thing_at_all_xyz", include=tmp_path)
    first, second = caught.value.faults
    assert "unknown task 'arc_chalenge'. Did you mean 'arc_challenge'" in first
    assert "unknown task 'no_such_thing_at_all_xyz'" in second
    assert "broken.yaml cannot be read" in first


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (
            ["broken_data"],
            "broken_data.yaml: task 'broken_data' cannot be built: FileNotFoundError: the data are gone",
        ),
        (["unknown_request"], "it asks for draw; evomerge answers loglikelihood, loglikelihood_rolling, generate"),
        ([TaskSpec("gen_long_answer", reference=True)], "document 0: an answer of"),
        (["mc_letters", "mc_letters"], "'mc_letters' is named twice"),
        (["mc_letters", "mc_small"], "'mc_letters' is named twice"),
        ([TaskSpec("mc_letters", limit=0)], "limit must be 1 or more, not 0"),
        ([TaskSpec("mc_letters", num_fewshot=-1)], "num_fewshot must be 0 or more, not -1"),
        ([TaskSpec("mc_letters", num_fewshot=99)], "cannot be built: ValueError: Sample larger than population"),
        ([], "names no task"),
    ],
)
def test_a_task_that_cannot_be_scored_is_refused(specs, message, make):
    assert message in refused(make, *specs)


def test_a_task_of_lm_evals_own_is_found_without_indexing_them_all(make, monkeypatch):
    """Its data are on the network, so that it can be found but not built here."""
    monkeypatch.setattr(task_names, "is_local", lambda *_: False)
    indexed = []
    build = TaskManager

    def counted(**keywords):
        indexed.append(keywords)
        return build(**keywords)

    monkeypatch.setattr(task_names, "TaskManager", counted)
    assert "arc_easy.yaml: task 'arc_easy' cannot be built: " in refused(make, "arc_easy")
    assert all(keywords["include_defaults"] is False for keywords in indexed)


def test_a_missing_include_folder_is_refused(make, tmp_path):
    assert "there is no folder" in refused(make, "mc_letters", include=tmp_path / "nowhere")


def test_a_missing_data_set_is_refused(make, tmp_path):
    yaml = "task: gone\ndataset_path: nobody/nothing\noutput_type: multiple_choice\ntest_split: test\n"
    (tmp_path / "gone.yaml").write_text(yaml + "doc_to_text: a\ndoc_to_choice: b\ndoc_to_target: c\n")
    assert "gone.yaml: task 'gone' cannot be built: " in refused(make, "gone", include=tmp_path)


def test_a_tokenizer_without_a_chat_template_is_refused(scoring_model, scoring_tokenizer, scoring_tasks):
    kept, scoring_tokenizer.chat_template = scoring_tokenizer.chat_template, None
    try:
        with pytest.raises(ConfigError, match="no chat template"):
            Scorer(
                scoring_model("llama"),
                scoring_tokenizer,
                [TaskSpec("mc_letters")],
                include=scoring_tasks,
                apply_chat_template=True,
            )
    finally:
        scoring_tokenizer.chat_template = kept


def test_document_hashes_find_shared_documents_whatever_the_prompt_around_them(make):
    plain = make("mc_letters").document_hashes("mc_letters")
    shots = make(TaskSpec("mc_letters", num_fewshot=3), apply_chat_template=True).document_hashes("mc_letters")
    assert plain == shots
    assert len(set(plain)) == 12
    assert not set(plain) & set(make("mc_prefixes").document_hashes("mc_prefixes"))


def test_documents_that_differ_behind_equal_choices_have_different_hashes(make):
    """The choices are contexts here, and what follows them tells documents apart."""
    scorer = make("mc_inputs")
    choices = [scorer.tasks["mc_inputs"].documents[at].instances[0].args[0] for at in (0, 6)]
    assert choices[0] == choices[1]
    assert len(set(scorer.document_hashes("mc_inputs"))) == 8


def test_references_are_the_different_answers_that_are_not_blank(make):
    def references(name):
        scorer = make(TaskSpec(name, reference=True))
        return [[one.args[1] for one in document.references] for document in scorer.tasks[name].documents]

    bee = [" bee"]
    assert references("gen_several") == [bee, bee, [" bee", " 2 bees"], [" bee", " 3 bees"], bee, bee]
    choices = [[" red"], [" green as grass"], [" blue"]]
    assert references("gen_choice") == choices * 2


def test_references_are_forwarded_only_where_asked_for_and_generated(make):
    asked = make(*(TaskSpec(name, reference=True) for name in ("mc_letters", "ll_target", "rolling")))
    assert asked.score().tokens == make("mc_letters", "ll_target", "rolling").score().tokens
    plain, more = make("gen_numbers"), make(TaskSpec("gen_numbers", reference=True))
    assert set(more.metrics("gen_numbers")) - set(plain.metrics("gen_numbers")) == {"loglikelihood"}
    assert plain.score().tokens < more.score().tokens


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ({"nothing": [0]}, "no task 'nothing'"),
        ({"mc_letters": [12]}, r"must lie in \[0, 12\)"),
        ({"mc_letters": []}, "no documents to score"),
    ],
)
def test_documents_that_do_not_exist_are_refused(documents, message, make):
    with pytest.raises(ValueError, match=message):
        make("mc_letters").score(documents)
