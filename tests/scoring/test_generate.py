"""Answers in free text: stop strings, lengths, truncation."""

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.scoring import Scorer, TaskSpec

TASK = """
task: {name}
custom_dataset: !function data.questions
output_type: generate_until
test_split: test
doc_to_text: "Q: {{{{text}}}}\\nA:"
doc_to_target: answer
repeats: {repeats}
generation_kwargs: {{until: {until}, max_gen_toks: {length}{more}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def make(scoring_model, scoring_tokenizer, scoring_tasks, tmp_path):
    """A scorer of one generation task with the given stop strings and length."""
    (tmp_path / "data.py").write_text((scoring_tasks / "data.py").read_text())

    def make(until="[]", length=12, more="", repeats=1, model=None, **keywords):
        text = TASK.format(name="made", until=until, length=length, more=more, repeats=repeats)
        (tmp_path / "made.yaml").write_text(text)
        model = model or scoring_model("llama")
        return Scorer(model, scoring_tokenizer, [TaskSpec("made")], include=tmp_path, **keywords)

    return make


def texts(scorer):
    return [document.instances[0].resps[0] for document in scorer._tasks["made"].documents]


def test_answers_that_reach_their_length_are_counted(make):
    scorer = make(length=5)
    assert scorer.score().truncated == {"made": 7}
    assert all(texts(scorer))


def test_answers_ended_by_a_stop_string_are_not_counted_and_lose_it(make):
    free = make(length=12)
    free.score()
    letters = sorted({letter for text in texts(free) for letter in text if letter in "acdeghilnorstw"})
    until = "[" + ", ".join(f'"{letter}"' for letter in letters) + "]"
    stopped = make(until=until, length=12)
    report = stopped.score()
    assert report.truncated["made"] < 7
    for text, whole in zip(texts(stopped), texts(free), strict=True):
        assert whole.startswith(text)
        assert not set(letters) & set(text)


def test_an_answer_ended_by_an_end_of_text_token_is_complete(make, scoring_model):
    model = scoring_model("llama")
    model.generation_config.eos_token_id = list(range(model.config.vocab_size))
    free, ended = make(), make(model=model)
    assert ended.score().truncated == {"made": 0}
    assert free.score().truncated == {"made": 7}
    for text, whole in zip(texts(ended), texts(free), strict=True):
        assert whole.startswith(text.rstrip("\ufffd"))
        assert len(text) < len(whole)


def test_an_answer_does_not_depend_on_its_neighbours(make):
    until = '["e", "a", "t"]'
    alone, together = make(until=until, batch_tokens=1), make(until=until, batch_tokens=4096)
    assert alone.score().truncated == together.score().truncated
    assert texts(alone) == texts(together)


def test_sampled_answers_repeat_with_the_call_and_leave_the_generator_alone(make):
    scorer = make(more=", do_sample: true, temperature: 1.5")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    scorer.score()
    first = texts(scorer)
    torch.manual_seed(8)
    scorer.score()
    assert texts(scorer) == first
    torch.manual_seed(7)
    scorer.score()
    assert torch.equal(torch.get_rng_state(), state)


def test_sampling_several_times_is_refused(make):
    with pytest.raises(ConfigError, match="repeats: 3 sampled answers"):
        make(more=", do_sample: true, temperature: 1.5", repeats=3)


def test_answers_longer_than_the_model_are_refused(make):
    with pytest.raises(ConfigError, match="max_gen_toks is 256, but the model's maximum length is 160"):
        make(length=256)
