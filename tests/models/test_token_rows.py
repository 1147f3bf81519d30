"""Rows are matched by token where vocabularies differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from evomerge.errors import CheckpointError
from evomerge.models import survey
from evomerge.models.family import Inputs
from tests.helpers.inputs import EMBEDDING, FIRST, NORM, change_tensors, live, opened, save_model, source


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
