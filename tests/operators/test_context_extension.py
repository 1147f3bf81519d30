"""Context extension on a live model is what an exported model will do, and is undone exactly."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from evomerge.errors import CandidateError
from evomerge.files import schema
from evomerge.models import rope
from evomerge.operators import Context, _rope_factors
from evomerge.operators import context_extension as extension
from evomerge.operators.context_extension import Options

LENGTH = 32
COMMON: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**COMMON),
    "qwen2": lambda: Qwen2Config(**COMMON),
    "qwen3": lambda: Qwen3Config(**COMMON, head_dim=16),
    "mistral": lambda: MistralConfig(**COMMON, sliding_window=None),
    "gemma3": lambda: Gemma3TextConfig(
        **COMMON, head_dim=16, layer_types=["sliding_attention", "full_attention"], sliding_window=16
    ),
    "phi3": lambda: Phi3Config(**COMMON),
    "olmo2": lambda: Olmo2Config(**COMMON),
}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4},
    "ntk": {"target_length": 100},
    "yarn": {"factor": 3.7, "beta_fast": 8.5, "beta_slow": 0.7},
    "longrope": {"factor": 4, "knots": [0.05, 0.3, 0.4, 0.35]},
    "llama3": {"factor": 4, "high_freq_factor": 6},
}
ACCEPTED = [
    (family, method)
    for family in FAMILIES
    for method in METHODS
    if family != "phi3" or method in ("ntk", "longrope")
]


def options(**given: Any) -> Options:
    return Options.model_validate(given)


def make(family: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(dtype)
    for name, buffer in buffers.items():  # from_pretrained leaves the rope's buffers float32
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)
    return model.eval().requires_grad_(False)


def tokens(length: int) -> torch.Tensor:
    return torch.randint(2, 29, (2, length), generator=torch.Generator().manual_seed(length))


def logits(model: Any, length: int = 3 * LENGTH) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(length)).logits  # type: ignore[no-any-return]


def context(folder: Path = Path("unused")) -> Context:
    return Context(seed=0, tokenizer=None, folder=folder, kept=folder / "kept.safetensors")


def state(model: Any) -> tuple[dict[str, torch.Tensor], str, list[dict[str, Any]]]:
    """Everything that an operator may touch: tensors, config, and the attributes of the rotary modules."""
    held = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    plain = [
        {name: str(value) for name, value in vars(module).items() if name not in vars(torch.nn.Module())}
        for module in rope.rotary(model)
    ]
    return held, str(vars(model.config.get_text_config())), plain


def assert_same(found: Any, wanted: Any) -> None:
    assert found[0].keys() == wanted[0].keys()
    for name, tensor in wanted[0].items():
        assert found[0][name].dtype == tensor.dtype, name
        assert torch.equal(found[0][name], tensor), name
    assert found[1:] == wanted[1:]


def reload(model: Any, folder: Path, drop: tuple[str, ...] = ()) -> Any:
    """The model as an exported folder holds it, its config under old and new keys without those in `drop`."""
    copy.deepcopy(model).save_pretrained(folder)  # which writes into the config
    path = folder / "config.json"
    config = rope.portable(json.loads(path.read_text()))
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in drop}))
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


# --- the live model is the exported one --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), ACCEPTED)
def test_live_equals_reloaded_and_undo_equals_before(family: str, method: str, tmp_path: Path) -> None:
    model, chosen = make(family), options(method=method, attention_scale=1.05, **METHODS[method])
    assert extension.check(chosen, model.config) == []
    length = extension.reach(chosen, model.config)
    before, plain = state(model), logits(model)
    applied = extension.apply(model, chosen, context())
    live = logits(model)
    assert not torch.equal(live, plain)
    assert model.config.max_position_embeddings == length == applied.record["length"]
    json.dumps(applied.record, allow_nan=False)
    for name, drop in {"both": (), "old": ("rope_parameters",)}.items():
        again = reload(model, tmp_path / name, drop)
        assert torch.equal(logits(again), live), f"{name} keys"
        assert again.config.max_position_embeddings == length
    applied.undo()
    assert_same(state(model), before)
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_bfloat16_is_exact_too(family: str, tmp_path: Path) -> None:
    model, chosen = make(family, torch.bfloat16), options(method="yarn", factor=4, attention_scale=1.1)
    before, plain = state(model), logits(model)
    applied = extension.apply(model, chosen, context())
    assert torch.equal(logits(reload(model, tmp_path)), logits(model))
    assert {buffer.dtype for name, buffer in model.named_buffers() if "inv_freq" in name} == {torch.float32}
    applied.undo()
    assert_same(state(model), before)
    assert torch.equal(logits(model), plain)


def test_a_rope_that_was_cast_is_made_anew_and_comes_back_as_it_was(tmp_path: Path) -> None:
    model = make("llama", torch.bfloat16).to(torch.bfloat16)
    model.model.rotary_emb.to(torch.bfloat16)
    before = state(model)
    applied = extension.apply(model, options(method="yarn", factor=4), context())
    assert torch.equal(logits(reload(model, tmp_path)), logits(model))
    applied.undo()
    assert_same(state(model), before)


def test_an_extended_model_is_extended_from_its_original_length(tmp_path: Path) -> None:
    model = make("phi3")
    first = extension.apply(model, options(method="longrope", factor=2, knots=[0, 1]), context())
    logits(model)  # leaves an attribute of its own in the rotary module
    before, plain = state(model), logits(model)
    assert rope.original_length(model.config) == LENGTH
    short = extension.check(options(method="longrope", factor=1.5), model.config)
    assert [line.split(":")[0] for line in short] == ["factor"]
    assert "give at least 2" in short[0]
    assert "target_length: " in extension.check(options(method="longrope", target_length=50), model.config)[0]
    second = extension.apply(model, options(method="longrope", factor=4), context())
    assert second.record["original_length"] == LENGTH
    assert model.config.max_position_embeddings == 4 * LENGTH
    assert model.config.original_max_position_embeddings == LENGTH
    assert torch.equal(logits(reload(model, tmp_path)), logits(model))
    second.undo()
    assert_same(state(model), before)
    assert torch.equal(logits(model), plain)
    first.undo()
    assert model.config.rope_parameters["rope_type"] == "default"


# --- what changes, and what does not -----------------------------------------------------------------------

QUERIES = {"qwen3": "q_norm.weight", "gemma3": "q_norm.weight", "olmo2": "q_norm.weight", "phi3": "qkv_proj.weight"}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_rope_and_the_queries_change(family: str) -> None:
    model = make(family)
    before = state(model)[0]
    method = "longrope" if family == "phi3" else "yarn"
    extension.apply(model, options(method=method, factor=4, attention_scale=1.1), context())
    after = state(model)[0]
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    ropes = {name for name in changed if "rotary_emb" in name}
    assert ropes
    assert not [name for name in ropes if "sliding" in name]
    scaled = {name for name in changed - ropes if QUERIES.get(family, "q_proj.") in name}
    assert changed == ropes | scaled
    layers = {int(name.split(".")[2]) for name in scaled}
    assert layers == ({1} if family == "gemma3" else {0, 1})
    if family == "phi3":
        name = "model.layers.0.self_attn.qkv_proj.weight"
        assert torch.equal(after[name][64:], before[name][64:])
        assert not torch.equal(after[name][:64], before[name][:64])


@pytest.mark.parametrize("method", METHODS)
def test_factor_1_is_the_identity(method: str) -> None:
    for family in ("llama", "gemma3"):
        model = make(family)
        before, plain = state(model), logits(model)
        chosen = options(method=method, **{**METHODS[method], "factor": 1.0, "target_length": None})
        assert extension.check(chosen, model.config) == []
        assert extension.reach(chosen, model.config) is None
        applied = extension.apply(model, chosen, context())
        assert_same(state(model), before)
        applied.undo()
        assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "qwen3", "olmo2", "gemma3", "phi3"])
def test_a_folded_scale_does_what_an_attention_factor_does(family: str) -> None:
    scale, method = 1.15, "longrope" if family == "phi3" else "yarn"
    folded, told = make(family), make(family)
    record = extension.apply(folded, options(method=method, factor=4, attention_scale=scale), context()).record
    parameters = extension.rope_parameters(options(method=method, factor=4), told.config, rope.dimension(told))
    parameters["attention_factor"] = record["attention_factor"] * scale
    rope.set_rope(told, parameters, rope.layer_type(told.config), 4 * LENGTH)
    assert "attention_factor" not in record["rope_parameters"]
    assert rope.attention_factor(told) == pytest.approx(record["wanted_attention_factor"])
    plain = make(family)
    extension.apply(plain, options(method=method, factor=4), context())
    wanted, span = logits(told), float(logits(told).abs().max())
    assert (logits(folded) - wanted).abs().max() < 1e-5 * max(1.0, span)
    assert (logits(plain) - wanted).abs().max() > 1e-3 * span


@pytest.mark.parametrize("method", METHODS)
def test_no_state_is_kept_between_forwards(method: str) -> None:
    model = make("llama")
    extension.apply(model, options(method=method, **METHODS[method]), context())
    short = logits(model, 20)
    logits(model, 4 * LENGTH)
    assert torch.equal(logits(model, 20), short)


def test_transformers_has_nothing_to_warn_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def warned() -> bool:
        return any("rope" in record.getMessage().lower() for record in caplog.records)

    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):
            for number, factor in enumerate((2.03, 3.3, 4.51)):
                model = make("llama")
                extension.apply(model, options(method="yarn", factor=factor, beta_fast=1.5, beta_slow=4), context())
                reload(model, tmp_path / str(number))
            assert not warned()
            model.config.rope_parameters["factor"] = 4.5123  # no ratio of lengths
            model.config.validate_rope()
            assert warned()
    finally:
        logger.removeHandler(caplog.handler)


# --- what is refused ---------------------------------------------------------------------------------------


def test_models_without_a_rope_are_refused_by_name() -> None:
    small = {"vocab_size": 14, "hidden_size": 16, "num_hidden_layers": 1}
    for config in (GPT2Config(vocab_size=14, n_embd=16, n_layer=1, n_head=2), MambaConfig(**small)):
        faults = extension.check(options(factor=2), config)
        assert faults == [f"method: a model of type {config.model_type} has no rotary position embedding"]
        with pytest.raises(CandidateError, match="no rotary"):
            extension.apply(AutoModelForCausalLM.from_config(config), options(factor=2), context())


@pytest.mark.parametrize("method", ["linear", "yarn", "llama3"])
def test_phi3_takes_longrope_only(method: str) -> None:
    model = make("phi3")
    before = state(model)
    (fault,) = extension.check(options(method=method, factor=4), model.config)
    assert fault.startswith("method: transformers refuses this rope for a phi3 model: ")
    assert "longrope" in fault
    with pytest.raises(CandidateError, match="phi3"):
        extension.apply(model, options(method=method, factor=4, attention_scale=1.1), context())
    assert_same(state(model), before)


def test_gpt_neox_is_stretched_but_its_fused_queries_are_not_scaled() -> None:
    small = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPTNeoXConfig(**small)).eval()
    before, plain = state(model), logits(model)
    assert extension.check(options(factor=4), model.config) == []
    (fault,) = extension.check(options(factor=4, attention_scale=1.1), model.config)
    assert fault.startswith("attention_scale: how GPTNeoXAttention makes its queries from query_key_value")
    with pytest.raises(CandidateError, match="GPTNeoXAttention"):
        extension.apply(model, options(factor=4, attention_scale=1.1), context())
    assert_same(state(model), before)
    applied = extension.apply(model, options(factor=4), context())
    assert not torch.equal(logits(model), plain)
    applied.undo()
    assert_same(state(model), before)


def test_gemma3_says_that_its_ramp_is_always_truncated() -> None:
    config = FAMILIES["gemma3"]()
    assert extension.check(options(factor=4, truncate=True), config) == []
    (fault,) = extension.check(options(factor=4, truncate=False), config)
    assert fault.startswith("truncate: ")
    rope_of = extension.rope_parameters
    assert rope_of(options(factor=4), config, 16)["truncate"] is True
    assert rope_of(options(factor=4, truncate=False), FAMILIES["llama"](), 16)["truncate"] is False


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"method": "dynamic", "factor": 2}, "method: dynamic keeps state between forwards"),
        ({"method": "yarm", "factor": 2}, "method: unknown method 'yarm'. Did you mean 'yarn'? Known: linear, "),
        ({"method": "yarn"}, "factor: give either a factor or a target_length"),
        ({"factor": 2, "target_length": 64}, "factor: give either a factor or a target_length"),
        ({"factor": 0.5}, "factor: Input should be greater than or equal to 1"),
        ({"factor": 2, "knots": [0, 1]}, "knots: belongs to longrope, but the method is yarn; remove it"),
        ({"method": "ntk", "factor": 2, "beta_fast": 8}, "beta_fast: belongs to yarn, but the method is ntk"),
        (
            {"method": "longrope", "factor": 2, "knots": [0, 1, -1]},
            "knots.2: Input should be greater than or equal",
        ),
        ({"method": "longrope", "factor": 2, "knots": [1]}, "knots: Tuple should have at least 2 items"),
        ({"factor": 2, "attention_factor": 1.1}, "attention_factor: is no key here"),
    ],
)
def test_a_wrong_option_is_one_clear_fault(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError) as caught:
        options(**given)
    (line,) = schema.faults_of(caught.value)
    assert line.startswith(fault)


@pytest.mark.parametrize("method", METHODS)
def test_options_survive_the_recipe(method: str) -> None:
    chosen = options(method=method, **METHODS[method])
    assert options(**json.loads(json.dumps(chosen.model_dump(mode="json")))) == chosen


def test_every_number_has_bounds_and_may_be_a_fraction() -> None:
    numbers = {
        name: {type(bound).__name__.lower(): bound for bound in field.metadata}
        for name, field in Options.model_fields.items()
        if name not in ("method", "truncate", "knots", "target_length")
    }
    for name, bounds in numbers.items():
        low, high = bounds["ge"].ge, bounds["le"].le
        given = {"method": extension._OWN.get(name, "yarn"), "factor": 2.5, name: low + 0.37 * (high - low)}
        assert getattr(options(**given), name) == given[name]
    assert options(target_length=99.6).target_length == 99.6


def test_an_estimate_counts_what_is_kept() -> None:
    assert extension.estimate(options(factor=2), 10**9).peak_bytes == 0
    assert extension.estimate(options(factor=2, attention_scale=1.1), 12 * 10**6).peak_bytes == 4 * 10**6


# --- the mathematics ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    knots=st.lists(st.floats(0, 4), min_size=2, max_size=8),
    factor=st.floats(1, 64),
    half=st.sampled_from([2, 8, 32, 64]),
)
def test_longrope_factors_never_fall(knots: list[float], factor: float, half: int) -> None:
    config = LlamaConfig(**{**COMMON, "max_position_embeddings": 2048})
    chosen = options(method="longrope", factor=factor, knots=knots)
    found = extension.rope_parameters(chosen, config, 2 * half)
    factors = found["long_factor"]
    assert found["short_factor"] == factors
    assert len(factors) == half
    assert all(low <= high for low, high in itertools.pairwise(factors))
    assert math.isclose(factors[0], found["factor"] ** knots[0], rel_tol=1e-9)
    assert math.isclose(factors[-1], found["factor"] ** sum(knots), rel_tol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    fast=st.floats(1.5, 64),
    slow=st.floats(0.25, 4),
    factor=st.floats(1.1, 32),
    original=st.sampled_from([64, 2048, 131072]),
    theta=st.sampled_from([1e4, 5e5]),
)
def test_no_betas_fail_and_the_ramp_is_that_of_transformers(
    fast: float, slow: float, factor: float, original: int, theta: float
) -> None:
    config = LlamaConfig(**{**COMMON, "max_position_embeddings": original})
    config.rope_parameters["rope_theta"] = theta
    model = AutoModelForCausalLM.from_config(config)
    record = extension.apply(
        model, options(factor=factor, beta_fast=fast, beta_slow=slow, truncate=False), context()
    ).record
    found = model.model.rotary_emb.inv_freq.double().numpy()
    plain = theta ** -(np.arange(0, 16, 2) / 16)
    low, high = sorted((fast, slow))
    share = _rope_factors.ramp(low, high, original, theta, 16)
    assert ((share >= 0) & (share <= 1) & (np.diff(share, prepend=0) >= 0)).all()
    np.testing.assert_allclose(found, plain * (1 - share + share / record["factor"]), rtol=1e-5)


@pytest.mark.parametrize("original", [64, 4096])
def test_longrope_starts_at_yarn(original: int) -> None:
    config = {**COMMON, "max_position_embeddings": original}
    frequencies = {}
    for method in ("yarn", "longrope", "knots"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**config))
        more = {}
        if method == "knots":
            more = {"knots": extension.yarn_knots(options(method="longrope", factor=4), model.config, 16, 8)}
            assert sum(more["knots"]) == pytest.approx(1.0)
        name = "yarn" if method == "yarn" else "longrope"
        exact = {"truncate": False} if method == "yarn" else {}
        extension.apply(model, options(method=name, factor=4, **exact, **more), context())
        frequencies[method] = model.model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies["longrope"], frequencies["yarn"], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        frequencies["knots"], frequencies["yarn"], rtol=1e-6, atol=0
    )  # 8 knots, 8 dimensions


def test_ntk_divides_the_lowest_frequency_by_the_factor() -> None:
    model = make("llama")
    highest, lowest = model.model.rotary_emb.inv_freq[[0, -1]].tolist()
    extension.apply(model, options(method="ntk", factor=4), context())
    found = model.model.rotary_emb.inv_freq
    assert found[0] == highest
    assert float(found[-1]) == pytest.approx(lowest / 4, rel=1e-5)
    assert "factor" not in model.config.rope_parameters


def test_a_base_may_be_scaled_without_a_longer_text() -> None:
    model, chosen = make("llama"), options(method="ntk", factor=1, theta_scale=3.0)
    assert extension.reach(chosen, model.config) is None
    applied = extension.apply(model, chosen, context())
    assert applied.record["theta"] == 30000.0
    assert model.config.max_position_embeddings == LENGTH


def test_checking_leaves_the_config_alone() -> None:
    for family in FAMILIES:
        config = FAMILIES[family]()
        before = copy.deepcopy(config.to_dict())
        extension.check(options(method="longrope", factor=4, attention_scale=1.1), config)
        assert config.to_dict() == before
