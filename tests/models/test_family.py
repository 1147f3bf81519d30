"""LoRA adapters, converted names and differing vocabularies become checkpoints that the merger takes."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.errors import CheckpointError
from evomerge.models import adapters, overlays, survey
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.family import Inputs
from evomerge.models.source import Source
from evomerge.recipes.recipe import Recipe
from evomerge.results import certificate
from evomerge.results.exporting.folder import export_recipe, export_trial
from evomerge.studies import check, experiment, life, study, trials
from evomerge.studies.candidates import score_model, workbench
from evomerge.studies.candidates.workbench import Setup, Workbench
from evomerge.studies.plan import Plan, make_plan, recipe_of

from tests.helpers.family import experiment_mapping, make_tokenizer
from tests.helpers.studies import Silent

NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


def silent(text: str) -> None:
    """Progress that nobody reads."""


def source(folder: Path) -> Source:
    return Source(model=str(folder))


def opened(cache: Path, base: Path, *experts: Path, policy: Any = None) -> dict[str, Checkpoint]:
    found = Inputs(source(base), {folder.name: source(folder) for folder in experts}, policy)
    first, rest = found.open(cache)
    return {"": first, **rest}


def live(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


# --- LoRA --------------------------------------------------------------------------------------------------


def save_adapter(base: Path, out: Path, seed: int = 0, **options: Any) -> Any:
    """A random adapter on a model folder; gives the model with peft's own merge."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    wrapped.save_pretrained(str(out))
    return wrapped.merge_and_unload()


PROJECTIONS = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": PROJECTIONS},
    "rslora": {"r": 4, "lora_alpha": 6, "target_modules": PROJECTIONS, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": PROJECTIONS,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 3},
        "alpha_pattern": {r"layers\.[01]\.self_attn\.v_proj": 9},
    },
    "embedding": {"r": 2, "target_modules": ["embed_tokens", "k_proj"]},
    "modules_to_save": {"r": 2, "target_modules": ["k_proj"], "modules_to_save": ["norm", "input_layernorm"]},
    "saved_embedding": {
        "r": 2,
        "target_modules": ["k_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_folded_as_peft_folds_it(
    family: Path, bf16_family: Path, tmp_path: Path, kind: str, dtype: str
) -> None:
    base = (family if dtype == "float32" else bf16_family) / "models/base"
    merged = save_adapter(base, tmp_path / "lora", **KINDS[kind])
    found = opened(tmp_path / "cache", base, tmp_path / "lora")
    rtol, atol = (2e-6, 2e-6) if dtype == "float32" else (2**-6, 2**-7)
    changed = 0
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(found["lora"][name], parameter.data, rtol=rtol, atol=atol)
        changed += not torch.equal(found["lora"][name], found[""][name])
    assert changed >= 4
    assert found["lora"].dtype == dtype


def tiny_gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    options = GPT2Config(
        vocab_size=14, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1
    )
    AutoModelForCausalLM.from_config(options).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora_bias", [False, True])
def test_weights_that_are_kept_transposed_are_folded_transposed(tmp_path: Path, lora_bias: bool) -> None:
    base = tiny_gpt2(tmp_path / "base")
    # c_proj of the attention is square, so that its shape does not tell.
    merged = save_adapter(
        base, tmp_path / "lora", r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, lora_bias=lora_bias
    )
    found = opened(tmp_path / "cache", base, tmp_path / "lora")["lora"]
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(found[name], parameter.data, rtol=2e-6, atol=2e-6)
    bias = "transformer.h.0.attn.c_attn.bias"
    assert torch.equal(found[bias], live(base)[bias]) is not lora_bias


def test_trained_biases_take_the_place_of_the_bases(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    options: dict[str, Any] = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}
    merged = save_adapter(base, tmp_path / "lora", **options)
    found = opened(tmp_path / "cache", base, tmp_path / "lora")["lora"]
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(found[name], parameter.data, rtol=2e-6, atol=2e-6)
    assert found["transformer.h.0.ln_1.bias"].abs().sum() > 0


def test_folding_gives_the_same_bits_on_any_number_of_threads() -> None:
    torch.manual_seed(0)
    weight, left, right = torch.randn(700, 513).bfloat16(), torch.randn(700, 9), torch.randn(9, 513)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(adapters.fold(weight, left, right, 0.7))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)
    expected = torch.zeros(700, 513)
    for k in range(9):
        expected = expected + left[:, k, None] * right[k]
    assert torch.equal(results[0], (0.7 * expected + weight.float()).bfloat16())
    exact = weight.double() + 0.7 * left.double() @ right.double()
    assert (results[0].double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / adapters.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(file: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    tensors = {**load_file(file), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, file, metadata={"format": "pt"})


@pytest.fixture
def lora(family: Path, tmp_path: Path) -> Path:
    """An adapter on the family's base."""
    save_adapter(family / "models/base", tmp_path / "lora", **KINDS["plain"])
    return tmp_path / "lora"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora: True"),
        ({"peft_type": "LOHA"}, "peft_type: LOHA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"something_new": 3}, "something_new: 3"),
        ({"r": "many"}, "is damaged"),
        ({"rank_pattern": {"(": 3}}, "is damaged"),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_its_key(
    family: Path, lora: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(lora, **changes)
    with pytest.raises(CheckpointError, match=rf"experts\.lora: .*adapter_config\.json.* {message}") as caught:
        Inputs(source(family / "models/base"), {"lora": source(lora)})
    assert "\n" not in str(caught.value)


KEY = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{KEY}.lora_A.weight": None}, rf"{KEY}\.lora_B\.weight in .* lacks its other half"),
        ({f"{KEY}.lora_A.weight": torch.ones(4, 31)}, rf"{KEY}\.lora_A\.weight .* \[4, 31\], but \[4, 32\] fits"),
        ({f"{KEY}.lora_A.weight": torch.ones(3, 32)}, rf"{KEY}\.lora_A\.weight .* \[3, 32\], but \[4, 32\] fits"),
        ({f"{KEY}.lora_magnitude_vector": torch.ones(32)}, r"lora_magnitude_vector in .* is no part of LoRA"),
        ({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 32)}, r"layers\.9.* has not"),
        ({f"base_model.model.{EMBEDDING}": torch.ones(14, 32)}, r"was trained without lm_head\.weight, which is"),
        ({"base_model.model.lm_head.weight": torch.ones(14, 32)}, r"lm_head\.weight in .* has not"),
        ({"base_model.model.model.norm.weight": torch.ones(31)}, r"norm\.weight .*\[31\], but \[32\] fits"),
        ({"base_model.model.model.norm.weight": torch.ones(32, dtype=torch.int8)}, r"norm\.weight .* torch\.int8"),
    ],
)
def test_an_adapters_tensor_that_does_not_fit_is_named_with_its_file(
    family: Path, lora: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    change_tensors(lora / adapters.WEIGHTS, changes)
    with pytest.raises(CheckpointError, match=rf"experts\.lora: .*{message}") as caught:
        Inputs(source(family / "models/base"), {"lora": source(lora)})
    assert str(lora / adapters.WEIGHTS) in str(caught.value)


def test_a_truncated_adapter_is_named(family: Path, lora: Path) -> None:
    data = (lora / adapters.WEIGHTS).read_bytes()
    (lora / adapters.WEIGHTS).write_bytes(data[:-7])
    with pytest.raises(CheckpointError, match=r"experts\.lora: .*adapter_model\.safetensors is damaged"):
        Inputs(source(family / "models/base"), {"lora": source(lora)})


def test_an_adapter_that_is_not_finite_is_named_with_its_tensor(family: Path, lora: Path) -> None:
    change_tensors(lora / adapters.WEIGHTS, {f"{KEY}.lora_A.weight": torch.full((4, 32), torch.nan)})
    with pytest.raises(
        CheckpointError, match=rf"experts\.lora: {KEY}\.lora_A\.weight .* not finite in .*adapter_model"
    ):
        survey.survey_models(source(family / "models/base"), {"lora": source(lora)}, "auto")


def test_an_adapter_alone_cannot_be_scored(lora: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^model: .* is a LoRA adapter, which can be an expert but not stand"
    ):
        Inputs(source(lora), {}, where="model")


def test_an_adapter_is_known_by_all_that_goes_into_it(family: Path, lora: Path, tmp_path: Path) -> None:
    def identity(base: str = "base") -> str:
        return Inputs(source(family / "models" / base), {"lora": source(lora)}).sha256("lora")

    first = identity()
    assert identity() == first
    moved = shutil.copytree(lora, tmp_path / "elsewhere")
    change_config(moved, base_model_name_or_path="another/name", lora_dropout=0.5)
    assert Inputs(source(family / "models/base"), {"x": source(moved)}).sha256("x") == first
    assert identity("ant") != first
    change_config(lora, lora_alpha=7)
    assert identity() != first
    change_config(lora, lora_alpha=6)
    change_tensors(lora / adapters.WEIGHTS, {f"{KEY}.lora_A.weight": torch.ones(4, 32)})
    assert identity() != first


# --- overlays ----------------------------------------------------------------------------------------------


def test_overlays_hold_only_what_was_made_and_are_made_once(family: Path, lora: Path, tmp_path: Path) -> None:
    base = family / "models/base"
    told: list[str] = []
    found = Inputs(source(base), {"lora": source(lora)})
    first = found.open(tmp_path / "cache", told.append)[1]["lora"]
    (file,) = (tmp_path / "cache/inputs").glob("*.safetensors")
    assert file.name == f"{found.sha256('lora')}-folded.safetensors"
    assert set(load_file(file)) == {name for name in first if name.split(".")[-2] in PROJECTIONS}
    assert told == ["making the folded tensors of experts.lora"]
    known = Source(model=str(lora), sha256=found.sha256("lora"))
    again = Inputs(source(base), {"lora": known}).open(tmp_path / "cache", told.append)[1]["lora"]
    assert len(told) == 1
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_a_damaged_overlay_is_made_again(family: Path, lora: Path, tmp_path: Path) -> None:
    base = family / "models/base"
    expected = opened(tmp_path / "cache", base, lora)["lora"]
    (file,) = (tmp_path / "cache/inputs").glob("*.safetensors")
    sound = file.read_bytes()
    for broken in (b"", sound[:100], sound[:-3], sound[:-3] + b"abc"):
        file.unlink()  # the views of a file that is written over in place would change
        file.write_bytes(broken)
        found = Inputs(source(base), {"lora": source(lora)}).open(tmp_path / "cache", whole=True)[1]["lora"]
        assert file.read_bytes() == sound
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_study_looks_for_damage_in_every_byte_before_its_workers_start(
    family: Path, lora: Path, tmp_path: Path
) -> None:
    found = survey.survey_models(source(family / "models/base"), {"lora": source(lora)}, "auto")
    setup = Setup(found.base, found.experts, found.dtype, str(tmp_path / "cache"))
    workbench.prepare(setup, [], found.names, silent)
    (file,) = (tmp_path / "cache/inputs").glob("*.safetensors")
    sound = file.read_bytes()
    file.unlink()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    workbench.prepare(setup, [], found.names, silent)
    assert file.read_bytes() == sound


def test_of_workers_that_start_together_one_makes_an_overlay(family: Path, lora: Path, tmp_path: Path) -> None:
    told: list[str] = []
    found = Inputs(source(family / "models/base"), {"lora": source(lora)})
    found.sha256("lora")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: found.open(tmp_path / "cache", told.append), range(4)))
    assert len(told) == 1


def test_a_survey_writes_nothing(family: Path, lora: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    survey.survey_models(source(family / "models/base"), {"lora": source(lora)}, "auto", vocabulary="union")
    assert sorted(tmp_path.rglob("*")) == before


# --- converted names ---------------------------------------------------------------------------------------


def save_mixtures(folder: Path) -> Path:
    """A base and an expert whose tensors transformers fuses on load."""
    torch.manual_seed(0)
    options = MixtralConfig(
        vocab_size=14,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(options)
    for name in ("base", "ant"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders base and ant of a tiny Mixtral."""
    return save_mixtures(tmp_path_factory.mktemp("mixtures"))


def test_fused_experts_are_what_transformers_loads(mixtures: Path, tmp_path: Path) -> None:
    found = opened(tmp_path, mixtures / "base", mixtures / "ant")
    for key, folder in (("", "base"), ("ant", "ant")):
        expected = live(mixtures / folder)
        assert all(torch.equal(found[key][name], tensor) for name, tensor in expected.items())
    files = sorted((tmp_path / "inputs").glob("*.safetensors"))
    assert len(files) == 2
    assert all(".mlp." in name for file in files for name in load_file(file)), "more is copied than what changed"


EXPERT = "model.layers.1.block_sparse_moe.experts.2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{EXPERT}.w1.weight": None}, r"mlp\.experts\.gate_up_proj cannot be made of .*ant "),
        (
            {f"{EXPERT}.w2.weight": torch.ones(3, 3)},
            r"mlp\.experts\.down_proj cannot be made of .*ant ",
        ),
        (
            dict.fromkeys([f"{EXPERT}.w{k}.weight" for k in (1, 2, 3)]),
            r"ant has model\.layers\.1.* other shapes",
        ),
        ({"model.norm.weight": None}, r"ant lacks model\.norm\.weight"),
        ({"model.extra.weight": torch.ones(2)}, r"ant has model\.extra\.weight, which its model does not know"),
    ],
)
def test_a_damaged_mixture_is_named_with_its_tensor_before_anything_is_made(
    mixtures: Path, tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    shutil.copytree(mixtures / "ant", tmp_path / "ant")
    change_tensors(tmp_path / "ant/model.safetensors", changes)
    with pytest.raises(CheckpointError, match=rf"experts\.ant: .*{message}") as caught:
        Inputs(source(mixtures / "base"), {"ant": source(tmp_path / "ant")})
    assert "\n" not in str(caught.value)


def test_an_expert_whose_config_is_lost_cannot_be_converted(mixtures: Path, tmp_path: Path) -> None:
    shutil.copytree(mixtures / "ant", tmp_path / "ant")
    (tmp_path / "ant/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"ant lacks model\.layers\.0\.mlp.* no config\.json by which"):
        Inputs(source(mixtures / "base"), {"ant": source(tmp_path / "ant")})


def test_old_names_are_converted(tmp_path: Path) -> None:
    new = tiny_gpt2(tmp_path / "new")
    old = shutil.copytree(new, tmp_path / "old")
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(new / "model.safetensors").items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    found = opened(tmp_path / "cache", old, new)
    assert all(torch.equal(found[""][name], tensor) for name, tensor in live(new).items())


def test_a_tied_expert_fits_a_base_with_a_head_of_its_own(family: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(family / "models/base")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    model.save_pretrained(tmp_path / "untied")
    found = opened(tmp_path / "cache", tmp_path / "untied", family / "models/ant")["ant"]
    assert torch.equal(found["lm_head.weight"], live(family / "models/ant")[EMBEDDING])


def test_an_adapter_folds_onto_a_converted_base(mixtures: Path, tmp_path: Path) -> None:
    merged = save_adapter(mixtures / "base", tmp_path / "lora", r=2, target_modules=["q_proj", "o_proj"])
    found = opened(tmp_path / "cache", mixtures / "base", tmp_path / "lora", mixtures / "ant")["lora"]
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(found[name], parameter.data, rtol=2e-6, atol=2e-6)


# --- vocabularies ------------------------------------------------------------------------------------------


def save_model(
    folder: Path, tokens: list[str], rows: int, *, tied: bool, seed: int, special: str | None = None
) -> Path:
    """A Llama with a tokenizer of those tokens in that order, one token a character."""
    torch.manual_seed(seed)
    options = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(options).save_pretrained(folder)
    state = json.loads(make_tokenizer().backend_tokenizer.to_str())
    state["model"]["vocab"] = {token: row for row, token in enumerate(tokens)}
    state["added_tokens"] = [
        {**entry, "id": tokens.index(entry["content"])}
        for entry in state["added_tokens"]
        if entry["content"] in tokens
    ]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    if special:
        tokenizer.add_tokens([AddedToken(special, special=True)])
    tokenizer.save_pretrained(folder)
    return folder


FIRST = ["<pad>", "<eos>", "<unk>", "="]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def strangers(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """base: a to d and two rows of padding. ant: order changed, no b, but x and y. bee: y, z, <new>; no a."""
    folder = tmp_path / "strangers"
    save_model(folder / "base", [*FIRST, *"abcd"], 10, tied=request.param, seed=1)
    save_model(folder / "ant", [*FIRST, *"dyxca"], 9, tied=request.param, seed=2)
    save_model(folder / "bee", [*FIRST, *"bcdyz"], 12, tied=request.param, seed=3, special="<new>")
    return folder


def per_token(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """A model's rows by tensor and token."""
    tokens = AutoTokenizer.from_pretrained(folder).get_vocab()
    model = live(folder)
    names = [name for name in (EMBEDDING, "lm_head.weight") if name in model]
    return {name: {token: model[name][row] for token, row in tokens.items()} for name in names}


def test_a_difference_in_rows_is_an_error_that_names_both_and_the_cure(strangers: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        Inputs(source(strangers / "base"), {n: source(strangers / n) for n in ("ant", "bee")})
    for name, rows in (("ant", 9), ("bee", 12)):
        assert f"experts.{name}: {EMBEDDING} has {rows} rows in" in str(caught.value)
    assert "the base's has 10: their vocabularies differ; give `vocabulary: base` or `vocabulary: union`" in str(
        caught.value
    )


def test_base_gives_every_expert_the_bases_rows_by_token(strangers: Path, tmp_path: Path) -> None:
    folders = [strangers / name for name in ("base", "ant", "bee")]
    found = opened(tmp_path / "cache", *folders, policy="base")
    base = live(strangers / "base")
    assert all(torch.equal(found[""][name], base[name]) for name in base)
    for expert in ("ant", "bee"):
        for name, rows in per_token(strangers / expert).items():
            assert found[expert][name].shape == base[name].shape
            for token, row in AutoTokenizer.from_pretrained(strangers / "base").get_vocab().items():
                expected = rows.get(token, base[name][row])
                assert torch.equal(found[expert][name][row], expected), (expert, token)
            assert torch.equal(found[expert][name][8:], base[name][8:]), "rows of padding are the base's"


def test_union_adds_the_experts_tokens_in_order_and_who_lacks_one_has_no_task_vector(
    strangers: Path, tmp_path: Path
) -> None:
    inputs = Inputs(source(strangers / "base"), {n: source(strangers / n) for n in ("bee", "ant")}, "union")
    assert inputs.added == {"y": 8, "x": 9, "z": 10, "<new>": 11}, "they take the padding first"
    assert inputs.rows == 12
    base, experts = inputs.open(tmp_path / "cache")
    held = {name: per_token(strangers / name) for name in ("base", "ant", "bee")}
    tokenizer = inputs.tokenizer()
    for name, own in held["base"].items():
        for token, row in tokenizer.get_vocab().items():
            holders = [held[n][name][token] for n in ("ant", "bee") if token in held[n][name]]
            wanted = own[token] if token in own else torch.stack(holders).mean(0)
            torch.testing.assert_close(base[name][row], wanted, rtol=1e-6, atol=1e-7)
            for expert in ("ant", "bee"):
                rows = held[expert][name]
                assert torch.equal(experts[expert][name][row], rows.get(token, base[name][row])), (expert, token)
    assert tokenizer("abxy<new>z=").input_ids == [4, 5, 9, 8, 11, 10, 3]
    assert "<new>" in tokenizer.added_tokens_decoder[11].content
    assert tokenizer.added_tokens_decoder[11].special


def test_union_keeps_padding_that_is_left(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", [*FIRST, *"ab"], 12, tied=True, seed=1)
    ant = save_model(tmp_path / "ant", [*FIRST, *"abx"], 7, tied=True, seed=2)
    inputs = Inputs(source(base), {"ant": source(ant)}, "union")
    assert (inputs.added, inputs.rows, inputs.shapes[EMBEDDING]) == ({"x": 6}, 12, (12, 16))
    first, experts = inputs.open(tmp_path / "cache")
    assert torch.equal(first[EMBEDDING][7:], live(base)[EMBEDDING][7:])
    assert torch.equal(experts["ant"][EMBEDDING][7:], live(base)[EMBEDDING][7:])
    assert torch.equal(first[EMBEDDING][6], live(ant)[EMBEDDING][6])


@pytest.mark.parametrize("policy", ["base", "union"])
def test_a_policy_changes_nothing_where_vocabularies_are_equal(family: Path, tmp_path: Path, policy: Any) -> None:
    models = {name: source(family / "models" / name) for name in ("ant", "bee")}
    plain, aligned = (Inputs(source(family / "models/base"), models, choice) for choice in (None, policy))
    assert [aligned.sha256(name) for name in ("", *models)] == [plain.sha256(name) for name in ("", *models)]
    aligned.open(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_realigned_expert_is_known_by_all_that_goes_into_it(strangers: Path) -> None:
    def identities(policy: Any, **changed: Path) -> dict[str, str]:
        folders = {"base": strangers / "base", "ant": strangers / "ant", "bee": strangers / "bee"} | changed
        first = source(folders.pop("base"))
        found = Inputs(first, {name: source(folder) for name, folder in folders.items()}, policy)
        return {name: found.sha256(name) for name in ("", "ant", "bee")}

    other = shutil.copytree(strangers / "ant", strangers.parent / "other")
    change_tensors(other / "model.safetensors", {NORM: torch.full((16,), 2.0)})
    base, union = identities("base"), identities("union")
    assert len({*base.values(), *union.values()}) == 6
    assert {k for k, v in identities("base", ant=other).items() if v != base[k]} == {"ant"}
    assert {k for k, v in identities("union", ant=other).items() if v != union[k]} == {"", "ant", "bee"}


def test_an_expert_of_another_dtype_has_no_task_vector_where_it_lacks_a_token(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", [*FIRST, *"ab"], 6, tied=True, seed=1)
    ant = save_model(tmp_path / "ant", [*FIRST, *"b"], 5, tied=True, seed=2)
    AutoModelForCausalLM.from_pretrained(ant, dtype=torch.bfloat16).save_pretrained(ant)
    found = opened(tmp_path / "cache", base, ant, policy="base")
    assert torch.equal(found["ant"][EMBEDDING][4].float(), found[""][EMBEDDING][4])


def test_a_policy_needs_tokenizers_and_says_whose_is_missing(strangers: Path) -> None:
    for file in (strangers / "ant").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"experts\.ant: .*ant has no tokenizer .*`vocabulary: base` matches"):
        Inputs(source(strangers / "base"), {"ant": source(strangers / "ant")}, "base")


def test_ids_that_a_tokenizer_cannot_give_are_refused(strangers: Path) -> None:
    path = strangers / "base/tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["vocab"]["d"] = 9  # leaves a hole at 7
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"takes 'y' at id \d+ and not at 10; give `vocabulary: base`"):
        survey.survey_models(
            source(strangers / "base"), {"ant": source(strangers / "ant")}, "auto", vocabulary="union"
        )


def test_an_adapter_with_new_tokens_brings_their_rows(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", [*FIRST, *"ab"], 6, tied=True, seed=1)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["x", "y"])
    model.resize_token_embeddings(8, mean_resizing=False)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(str(tmp_path / "lora"), save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "lora")
    experts = {"lora": source(tmp_path / "lora")}
    with pytest.raises(CheckpointError, match=r"experts\.lora: .* has 8 rows .* give `vocabulary: base`"):
        Inputs(source(base), experts)
    found = Inputs(source(base), experts, "union")
    first, rest = found.open(tmp_path / "cache")
    assert found.added == {"x": 6, "y": 7}
    for rows in (first[EMBEDDING][6:], rest["lora"][EMBEDDING][6:]):
        assert torch.equal(rows, wrapped.get_input_embeddings().weight.detach()[6:])


# --- all of it in a study ----------------------------------------------------------------------------------


def run(folder: Path, family: Path, **changes: Any) -> tuple[Plan, trials.Trial, Path]:
    """A search, resumed once, its best trial and its export."""
    data = experiment_mapping(family, folder / "study", budget={"candidates": 7}, **changes)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(data))
    plan = make_plan(experiment.load_experiment(folder / "experiment.yaml"))
    life.create(plan.experiment)
    study.search(plan, Silent())
    plan = make_plan(life.reopen(folder / "study", 8))
    trial = trials.best_trial(study.search(plan, Silent()))
    assert trial is not None
    return plan, trial, export_trial(plan, trial, folder / "merged", silent)


def check_export(plan: Plan, trial: trials.Trial, merged: Path, again: Path) -> None:
    """The scored model, the exported one and the one of its recipe are the same, and score the same."""
    fitness = plan.experiment.fitness
    found = score_model.score_model(str(merged), fitness, fitness.search, dtype="auto", threads=1)
    assert found["weights_sha256"] == trial.weights_sha256
    assert found["climbed"] == trial.climbed
    rebuilt = export_recipe(merged / "recipe.yaml", again, silent)
    assert json.loads((rebuilt / "evomerge.json").read_text())["weights_sha256"] == trial.weights_sha256
    assert not list(again.parent.glob(".*tables")), "temporary tables are left"


@pytest.mark.slow
def test_a_study_with_an_adapter_exports_what_it_scored(family: Path, lora: Path, tmp_path: Path) -> None:
    experts = {"lora": str(lora), "bee": str(family / "models/bee")}
    plan, trial, merged = run(tmp_path, family, experts=experts)
    check_export(plan, trial, merged, tmp_path / "again")
    assert check.check_tasks(plan) == ({"first": 24, "second": 24, "first_test": 24}, None)
    names = [row.name for row in certificate.certify_winner(plan, recipe_of(plan, trial)).rows]
    assert names == ["base", "expert bee", "expert lora", "uniform average", "winner"]


@pytest.mark.slow
def test_a_study_over_the_union_of_vocabularies_exports_what_it_scored(family: Path, tmp_path: Path) -> None:
    letters = "abcdefghij"
    base = save_model(tmp_path / "base", [*FIRST, *letters], 15, tied=True, seed=1)
    ant = save_model(tmp_path / "ant", [*FIRST, *reversed(letters), *"xy"], 16, tied=True, seed=2)
    plan, trial, merged = run(tmp_path, family, base=str(base), experts={"ant": str(ant)}, vocabulary="union")
    check_export(plan, trial, merged, tmp_path / "again")
    assert json.loads((merged / "config.json").read_text())["vocab_size"] == 16
    assert AutoTokenizer.from_pretrained(merged)("ajyx").input_ids == [4, 13, 15, 14]
    certificate.certify_winner(plan, recipe_of(plan, trial))


@pytest.mark.slow
def test_the_command_line_refuses_strangers_with_one_message_and_takes_them_with_a_policy(
    family: Path, strangers: Path
) -> None:
    experts = {name: str(strangers / name) for name in ("ant", "bee")}
    path = strangers / "experiment.yaml"
    for policy, code in ((None, 2), ("base", 0), ("union", 0), ("all", 2)):
        changes = {"base": str(strangers / "base"), "experts": experts, "vocabulary": policy}
        path.write_text(yaml.safe_dump(experiment_mapping(family, strangers / "study", **changes)))
        found = CliRunner().invoke(app, ["check", str(path)])
        assert found.exit_code == code, found.output
        assert "Traceback" not in found.output


def test_a_workbench_makes_what_is_missing_and_merges_mixtures_exactly(mixtures: Path, tmp_path: Path) -> None:
    found = survey.survey_models(source(mixtures / "base"), {"ant": source(mixtures / "ant")}, "auto")
    setup = Setup(found.base, found.experts, found.dtype, str(tmp_path / "cache"))
    bench = Workbench(pickle.loads(pickle.dumps(setup)))
    recipe = Recipe(
        method="task_arithmetic",
        base=found.base,
        experts=found.experts,
        dtype=found.dtype,
        layers=found.layers,
        parameters={"weight": 0.5},  # type: ignore[dict-item]
    )
    model = bench.build(recipe).model
    base, ant = live(mixtures / "base"), live(mixtures / "ant")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.data, base[name] + 0.5 * (ant[name] - base[name]), rtol=1e-6, atol=1e-7
        )
    assert overlays.is_overlay(tmp_path / f"cache/inputs/{found.base.sha256}-converted.safetensors", whole=True)
