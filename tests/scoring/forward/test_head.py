"""The streamed output layer against plain log_softmax, and the check that a model may use it."""

from typing import Any

import pytest
import torch

from evomerge.scoring.forward import head
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer


@pytest.mark.parametrize("chunk", [1, 1 << 24], ids=["many-chunks", "one-chunk"])
@pytest.mark.parametrize("bias", [False, True])
def test_streamed_log_probabilities_equal_log_softmax(chunk, bias, monkeypatch):
    monkeypatch.setattr(head, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 16), torch.randn(5000, 16)
    offset = torch.randn(5000) if bias else None
    logits = torch.tanh((hidden @ weight.T + (0 if offset is None else offset)) / 5) * 5
    where = torch.arange(7).repeat(3)
    tokens = torch.cat([logits.argmax(-1), torch.randint(0, 5000, (7,)), torch.full((7,), 4999)])
    logprobs, greedy = head.answer_logprobs(
        hidden, weight, offset, lambda chunk: torch.tanh(chunk / 5) * 5, where, tokens
    )
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[where, tokens], rtol=0, atol=1e-5)
    assert greedy.tolist() == (logits.argmax(-1)[where] == tokens).tolist()
    assert greedy[:7].all()


def test_bfloat16_hidden_states_get_float32_log_probabilities():
    torch.manual_seed(0)
    units: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009
    before = units.fp32_precision
    hidden, weight = 3 * torch.randn(40, 64).bfloat16(), torch.randn(3000, 64).bfloat16()
    where, tokens = torch.arange(40), torch.randint(0, 3000, (40,))
    logprobs, _ = head.answer_logprobs(hidden, weight, None, lambda logits: logits, where, tokens)
    wanted = (hidden.double() @ weight.double().T).log_softmax(-1)[where, tokens]
    torch.testing.assert_close(logprobs.double(), wanted, rtol=0, atol=1e-4)
    assert units.fp32_precision == before


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere", "granite"])
def test_the_shortcut_is_taken_whatever_the_weights_are(family, scoring_model):
    model = scoring_model(family)
    assert head.shortcut_holds(model, head.finisher(model.config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert head.shortcut_holds(model, head.finisher(model.config))


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite"])
def test_the_shortcut_is_refused_where_logits_are_finished_otherwise(family, scoring_model):
    assert not head.shortcut_holds(scoring_model(family), lambda logits: logits)


def test_the_shortcut_is_refused_where_a_model_writes_into_its_logits(scoring_model):
    model = scoring_model("llama")
    plain = model.forward

    def masked(*arguments, **keywords):
        output = plain(*arguments, **keywords)
        output.logits[:, :, 5:7] = torch.finfo(output.logits.dtype).min
        return output

    model.forward = masked
    assert not head.shortcut_holds(model, head.finisher(model.config))


def test_a_model_with_a_head_of_its_own_is_scored_by_full_forwards(
    scoring_model, scoring_tokenizer, scoring_tasks, scoring_stock
):
    model = scoring_model("llama")
    plain = model.forward

    def bent(*arguments, **keywords):
        output = plain(*arguments, **keywords)
        output.logits = output.logits * 0.5
        return output

    model.forward = bent
    scorer = Scorer(model, scoring_tokenizer, [TaskSpec("mc_letters")], include=scoring_tasks)
    assert scorer.full_forward
    stock = scoring_stock(model, scoring_tokenizer, ["mc_letters"])["samples"]["mc_letters"]
    wanted = [sample["resps"][sample["target"]][0][0] for sample in stock]
    found = scorer.score().tasks["mc_letters"].metrics["loglikelihood"]
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
