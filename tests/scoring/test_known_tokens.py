"""A token that the model has no row for is told when the tasks are built, wherever a text holds it."""

import copy
import json
from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer

_DATA = """
import datasets

def rows(**_):
    return {{name: datasets.Dataset.from_list({rows}[name]) for name in ("train", "test")}}
"""
_FORM = """
task: made
custom_dataset: !function data.rows
test_split: test
fewshot_split: train
num_fewshot: {shots}
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
description: "{description}"
output_type: {kind}
"""
_KINDS = {
    "multiple_choice": "doc_to_choice: choices\n",
    "loglikelihood": "",
    "loglikelihood_rolling": "",
    "generate_until": "generation_kwargs: {until: ['.'], max_gen_toks: 4}\n",
}
TOKEN = "<call>"


@pytest.fixture
def build(scoring_model, scoring_tokenizer, tmp_path):
    """Makes a scorer of a task of two documents on a model that has no row for the tokenizer's last token."""

    def make(kind, question="red", answer="cat", shot="dog", description="", template=None, pad=None, **keywords):
        tokenizer, model = copy.deepcopy(scoring_tokenizer), scoring_model("llama")
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        tokenizer.add_tokens([TOKEN])
        assert tokenizer.convert_tokens_to_ids(TOKEN) == model.get_input_embeddings().weight.shape[0]
        if template is not None:
            tokenizer.chat_template = template + tokenizer.chat_template
        if pad is not None:
            tokenizer.pad_token = pad
        sound = {"question": "green", "answer": "cat", "choices": ["cat", "dog"], "label": 0}
        met = {**sound, "question": question, "answer": answer, "choices": ["cat", answer]}
        rows = {"train": [{**sound, "question": shot}], "test": [sound, met]}
        (tmp_path / "data.py").write_text(_DATA.format(rows=json.dumps(rows)))
        target = "label" if kind == "multiple_choice" else "answer"
        form = _FORM.format(kind=kind, target=target, shots=int(shot != "dog"), description=description)
        (tmp_path / "made.yaml").write_text(form + _KINDS[kind])
        spec = TaskSpec("made", reference=keywords.pop("reference", False))
        return Scorer(model, tokenizer, [spec], include=tmp_path, **keywords)

    return make


PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "question": ("multiple_choice", {"question": f"red {TOKEN} blue"}),
    "question to generate from": ("generate_until", {"question": f"red {TOKEN} blue"}),
    "choice": ("multiple_choice", {"answer": TOKEN}),
    "end of an answer": ("loglikelihood", {"answer": f"red {TOKEN}"}),
    "answer of one token": ("loglikelihood", {"answer": TOKEN}),
    "page": ("loglikelihood_rolling", {"answer": f"red cat {TOKEN}"}),
    "few-shot example": ("multiple_choice", {"shot": f"{TOKEN} dog"}),
    "description": ("generate_until", {"description": TOKEN}),
    "chat template": ("generate_until", {"template": TOKEN, "apply_chat_template": True}),
    "reference answer": ("generate_until", {"answer": TOKEN, "reference": True}),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_token_without_a_row_is_told_with_its_document(place, build):
    kind, keywords = PLACES[place]
    with pytest.raises(
        ConfigError, match=rf"made: document [01]: its text holds the token '{TOKEN}' \(id \d+\), but"
    ):
        build(kind, **keywords)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_tokenizer_with_tokens_that_no_text_holds_is_harmless(kind, build):
    build(kind).score()


@pytest.mark.parametrize("pad", [TOKEN, "</s>"])
def test_prompts_are_padded_with_a_token_that_the_model_has(pad, build, monkeypatch):
    scorer = build("generate_until", question="red green yellow blue", pad=pad)
    texts = scorer._engine._generator
    monkeypatch.setattr(texts, "_masks", None)  # leaves the answers to model.generate
    padded = texts.run([0, 1]).answers
    alone = {at: texts.run([at]).answers[at] for at in (0, 1)}
    assert {at: one.text for at, one in padded.items()} == {at: one.text for at, one in alone.items()}
