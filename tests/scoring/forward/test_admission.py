"""Tree masks: models that heed them share tokens, models that cannot do not, and the numbers are right in both."""

import types

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig

from evomerge.errors import CheckpointError
from evomerge.scoring.forward import admission
from evomerge.scoring.forward.masks import TreeMasks
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer
from tests.helpers.tiny_models import ROWS, TREES, VOCABULARY, plain_logprobs

WINDOWS = ("gemma2", "gemma3", "mistral", "qwen2_window")


def distinct_tokens(pairs):
    """Tokens of the prefix tree of all rows."""
    return len({tuple(row[:length]) for row, _ in pairs for length in range(1, len(row) + 1)})


def assert_equal_to_plain_forwards(model, engine, pairs):
    found = engine.answer(range(len(pairs)), [], None)
    for at, (row, answer) in enumerate(pairs):
        logprob, greedy = plain_logprobs(model, row, answer)
        assert found.likelihoods[at][0] == pytest.approx(logprob, abs=1e-4)
        assert found.likelihoods[at][1] == greedy
    return found


@pytest.fixture
def pairs(scoring_few_shot):
    """Few-shot rows on one beginning, a short row, and a row longer than a batch."""
    return [*scoring_few_shot(), ([5, 9, 7], [7]), (list(range(20, 140)), [139, 3, 4])]


@pytest.mark.parametrize("family", TREES)
def test_a_model_that_heeds_a_tree_mask_shares_tokens_and_is_right(family, pairs, scoring_model, scoring_engine):
    model = scoring_model(family)
    engine = scoring_engine(model, pairs)
    assert engine.shared
    found = assert_equal_to_plain_forwards(model, engine, pairs)
    assert distinct_tokens(pairs) <= found.tokens < 1.1 * distinct_tokens(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("batch_tokens", [64, 1024])
@pytest.mark.parametrize("family", ROWS)
def test_a_model_that_cannot_heed_a_tree_mask_is_right_row_by_row(
    family, batch_tokens, pairs, scoring_model, scoring_engine
):
    model = scoring_model(family)
    engine = scoring_engine(model, pairs, batch_tokens=batch_tokens)
    assert not engine.shared
    found = assert_equal_to_plain_forwards(model, engine, pairs)
    assert found.tokens == sum(map(len, {tuple(row) for row, _ in pairs}))


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_a_scorer_says_whether_rows_are_shared(family, scoring_model, scoring_tokenizer, scoring_tasks):
    scorer = Scorer(scoring_model(family), scoring_tokenizer, [TaskSpec("mc_letters")], include=scoring_tasks)
    assert scorer.shared == (family in TREES)


@pytest.mark.parametrize("family", WINDOWS)
def test_a_window_narrower_than_the_kept_path_is_kept_to(family, pairs, scoring_model, scoring_engine):
    """Rows, the beginning they share and single batches are all longer than the window."""
    model = scoring_model(family)
    masks = admission.describe(model)
    assert masks is not None
    assert masks.window == 16 < min(len(row) for row, _ in pairs if len(row) > 3)
    for batch_tokens in (24, 1024):
        assert_equal_to_plain_forwards(model, scoring_engine(model, pairs, batch_tokens=batch_tokens), pairs)


@pytest.mark.parametrize("family", WINDOWS)
def test_a_window_one_token_off_is_noticed(family, scoring_model):
    model = scoring_model(family)
    masks = admission.describe(model)
    assert masks is not None
    assert admission.admit_trees(model, masks, 100)
    for off in (-1, 1):
        windows = {kind: window and window + off for kind, window in masks.windows.items()}
        assert not admission.admit_trees(model, TreeMasks(windows, masks.dtype), 100)


def wrap(model, change):
    """Changes the keywords of each forward pass of a model's body."""
    plain = model.model.forward

    def forward(
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **keywords,
    ):
        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }
        return plain(input_ids=input_ids, inputs_embeds=inputs_embeds, **keywords, **change(given))

    model.model.forward = forward


def without_positions(given):
    return {**given, "position_ids": None}


def without_mask(given):
    return {**given, "attention_mask": None}


def without_past(given):
    return {**given, "past_key_values": None}


def with_two_dimensions(given):
    mask = given["attention_mask"]
    return given if mask is None else {**given, "attention_mask": (mask[:, 0, -1] == 0).long()}


def that_fails(given):
    if given["attention_mask"] is not None:
        raise ValueError("attention_mask should be (b, l)")
    return given


@pytest.mark.parametrize(
    "change",
    [without_positions, without_mask, without_past, with_two_dimensions, that_fails],
    ids=lambda change: change.__name__,
)
def test_a_model_that_ignores_what_it_is_told_is_forwarded_row_by_row(change, pairs, scoring_model, scoring_engine):
    model = scoring_model("llama")
    wrap(model, change)
    assert admission.describe(model) is not None
    engine = scoring_engine(model, pairs)
    assert not engine.shared
    assert_equal_to_plain_forwards(scoring_model("llama"), engine, pairs)


def test_a_wrapped_model_that_passes_all_on_shares_tokens(pairs, scoring_model, scoring_engine):
    model = scoring_model("llama")
    wrap(model, lambda given: given)
    assert scoring_engine(model, pairs).shared


def test_running_out_of_memory_while_a_model_is_tried_out_says_nothing_of_the_model(scoring_model):
    model = scoring_model("llama")

    def no_memory(given):
        raise torch.OutOfMemoryError("provoked")

    wrap(model, no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        admission.find_masks(model, 100)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_half_precision_model_is_admitted_and_one_that_ignores_positions_is_not(family, scoring_model):
    model = scoring_model(family).bfloat16()
    assert admission.find_masks(model, 100) is not None
    wrap(model, without_positions)
    assert admission.find_masks(model, 100) is None


@pytest.mark.parametrize("decoder", [True, False])
def test_a_model_that_looks_ahead_is_refused_by_name(decoder, pairs, scoring_engine):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=VOCABULARY, initializer_range=0.3, is_decoder=decoder, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    if decoder:
        assert_equal_to_plain_forwards(model, scoring_engine(model, pairs), pairs)
        return
    with pytest.raises(CheckpointError, match=r"BertLMHeadModel cannot be scored, .* depends on the tokens"):
        scoring_engine(model, pairs)


def test_a_model_that_needs_an_image_is_refused_by_name(pairs, scoring_engine, scoring_model):
    model = scoring_model("llama")

    def forward(self, pixel_values, **given):
        raise AssertionError

    model.forward = types.MethodType(forward, model)
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM cannot .* text alone: .*'pixel_values'"):
        scoring_engine(model, pairs)
