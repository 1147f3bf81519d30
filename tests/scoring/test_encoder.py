"""Requests that cannot be answered are refused when they are tokenized."""

import pytest

from evomerge.errors import ConfigError
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer


def test_sampling_several_times_is_refused(scoring_make_generation):
    with pytest.raises(ConfigError, match="repeats: 3 sampled answers"):
        scoring_make_generation(more=", do_sample: true, temperature: 1.5", repeats=3)


def test_answers_longer_than_the_model_are_refused(scoring_make_generation):
    with pytest.raises(ConfigError, match="max_gen_toks is 256, but the model's maximum length is 160"):
        scoring_make_generation(length=256)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"until": "null"}, "until must be a text or a list of texts"),
        ({"until": "3"}, "until must be a text or a list of texts"),
        ({"length": 0}, "max_gen_toks is 0; it must be 1 or more"),
        ({"length": -3}, "max_gen_toks is -3; it must be 1 or more"),
    ],
)
def test_options_that_give_no_answer_are_refused(keywords, message, scoring_make_generation):
    with pytest.raises(ConfigError, match=message):
        scoring_make_generation(**keywords)


def test_nothing_before_an_answer_is_refused_where_no_token_stands_for_it(
    scoring_make_generation, scoring_model, scoring_tokenizers, tmp_path
):
    scoring_make_generation()  # writes the data
    form = "task: bare\ncustom_dataset: !function data.questions\ntest_split: test\ndoc_to_text: '{text}'\n"
    (tmp_path / "bare.yaml").write_text(
        form.format(text=" ") + "output_type: loglikelihood\ndoc_to_target: answer\ntarget_delimiter: ''\n"
    )
    (tmp_path / "blank.yaml").write_text(
        form.format(text="").replace("bare", "blank") + "output_type: generate_until\ndoc_to_target: answer\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 4}\n"
    )
    for task, message in (("bare", "document 0: nothing goes before the answer"), ("blank", "its prompt has no")):
        spec = [TaskSpec(task)]
        with pytest.raises(ConfigError, match=message):
            Scorer(scoring_model("gpt2"), scoring_tokenizers[False], spec, include=tmp_path)
        Scorer(scoring_model("gpt2"), scoring_tokenizers[True], spec, include=tmp_path).score()
