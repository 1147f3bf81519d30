"""What the parents' files hold is what the export's files hold: nothing is dropped, and all of it is merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from evomerge.errors import CheckpointError
from evomerge.models.source import Source
from evomerge.models.survey import Survey, survey_models
from evomerge.results.exporting.folder import export_recipe
from tests.helpers.family import make_tokenizer
from tests.helpers.inputs import silent
from tests.helpers.whole import (
    BIAS,
    MTP,
    VISION,
    noisy,
    rewrite,
    save_blind,
    save_routed,
    save_seeing,
    tensors,
    write_recipe,
)

TEXT = "model.language_model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts, each with a bias of its own in its router."""
    folder = tmp_path_factory.mktemp("routed")
    base = save_routed(folder / "base")
    for seed, name in enumerate(("ant", "bee"), 1):
        noisy(base, folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts with towers for images, and heads for further tokens that no class builds."""
    folder = tmp_path_factory.mktemp("seeing")
    plain = save_seeing(folder / "plain")
    heads = {name: torch.randn(4, 4, generator=torch.Generator().manual_seed(7)) for name in MTP}
    base = noisy(plain, folder / "base", 3, heads)
    for seed, name in enumerate(("ant", "bee"), 1):
        noisy(base, folder / name, seed)
    return folder


def merge(
    folder: Path, out: Path, experts: tuple[str, ...] = ("ant", "bee"), **recipe: Any
) -> dict[str, torch.Tensor]:
    given = {"method": "task_arithmetic", **recipe}
    file = write_recipe(
        out.with_suffix(".yaml"), folder / "base", {name: folder / name for name in experts}, **given
    )
    return tensors(export_recipe(file, out, silent))


def survey(base: Path, *experts: Path) -> Survey:
    sources = {folder.name: Source(model=str(folder)) for folder in experts}
    return survey_models(Source(model=str(base)), sources, "auto")


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


# --- saved buffers


def test_a_routers_bias_is_merged_like_a_tensor(routed: Path, tmp_path: Path) -> None:
    found = merge(routed, tmp_path / "out", parameters={"weight": {"ant": 0.5, "bee": 0.25}})
    base, ant, bee = (tensors(routed / name)[BIAS].double() for name in ("base", "ant", "bee"))
    torch.testing.assert_close(found[BIAS].double(), base + 0.5 * (ant - base) + 0.25 * (bee - base))


def test_weight_one_of_an_expert_is_that_expert(routed: Path, tmp_path: Path) -> None:
    found = merge(routed, tmp_path / "out", method="linear", parameters={"weight": {"ant": 1.0, "bee": 0.0}})
    assert same(found, tensors(routed / "ant"))


def test_a_buffer_in_which_all_are_equal_stays_bit_equal(routed: Path, tmp_path: Path) -> None:
    for name in ("base", "ant", "bee"):
        shutil.copytree(routed / name, tmp_path / name)
        rewrite(tmp_path / name, {BIAS: tensors(routed / "base")[BIAS]})
    options: dict[str, Any] = {"options": {"normalize": False}, "parameters": {"weight": 1.0}}
    found = merge(tmp_path, tmp_path / "out", method="linear", **options)
    assert torch.equal(found[BIAS], tensors(routed / "base")[BIAS])


def test_an_expert_without_the_buffer_stands_for_the_base(routed: Path, tmp_path: Path) -> None:
    for name in ("base", "ant", "bee"):
        shutil.copytree(routed / name, tmp_path / name)
    rewrite(tmp_path / "bee", {BIAS: None})
    found = merge(tmp_path, tmp_path / "out", parameters={"weight": 1.0})
    torch.testing.assert_close(found[BIAS], tensors(routed / "ant")[BIAS])


def test_a_bias_changes_the_hash_of_a_model(routed: Path, tmp_path: Path) -> None:
    hashes = set()
    for weight in (0.0, 1.0):
        out = tmp_path / str(weight)
        rows = {"*": 0.0, BIAS: weight}
        merge(routed, out, parameters={"weight": rows})
        hashes.add(json.loads((out / "evomerge.json").read_text())["weights_sha256"])
    assert len(hashes) == 2


# --- towers and heads that are not built


def test_a_parent_with_a_tower_comes_out_whole(seeing: Path, tmp_path: Path) -> None:
    found = merge(seeing, tmp_path / "out", method="linear", parameters={"weight": {"ant": 1.0, "bee": 0.0}})
    assert same(found, tensors(seeing / "ant"))
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == ["Qwen3_5ForConditionalGeneration"]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    wanted = AutoModelForImageTextToText.from_pretrained(seeing / "ant")
    ids = torch.tensor([[4, 5, 6, 7, 3, 8]])
    assert torch.equal(loaded(input_ids=ids).logits, wanted(input_ids=ids).logits)


def test_a_recipe_can_freeze_a_tower_and_the_heads(seeing: Path, tmp_path: Path) -> None:
    weight = {"*": 0.5, "vision": 0.0, "mtp": 0.0}
    found = merge(seeing, tmp_path / "out", parameters={"weight": weight})
    base = tensors(seeing / "base")
    frozen = [name for name in base if name.startswith((VISION, "mtp."))]
    assert len(frozen) > 40
    assert all(torch.equal(found[name], base[name]) for name in frozen)
    assert not torch.equal(found[TEXT], base[TEXT])


def test_towers_and_heads_are_module_groups_outside_of_the_layers(seeing: Path) -> None:
    found = survey(seeing / "base", seeing / "ant")
    groups = {module: [n for n, p in found.places.items() if p.module == module] for module in ("vision", "mtp")}
    assert {name for name in found.places if name.startswith(VISION)} == set(groups["vision"])
    assert sorted(groups["mtp"]) == sorted(MTP) == found.carried
    assert found.layers == 4, "the tower has more layers, which are not counted"
    assert {found.places[name].layer for name in groups["vision"]} == {0}
    assert {found.places[name].layer for name in groups["mtp"]} == {3}
    assert found.told()["merged"].endswith(f"{len(groups['vision'])} vision, 2 mtp)")


def test_what_no_expert_has_is_kept_and_told(seeing: Path, tmp_path: Path) -> None:
    shutil.copytree(seeing / "ant", tmp_path / "ant")
    rewrite(tmp_path / "ant", dict.fromkeys(MTP))
    shutil.copytree(seeing / "base", tmp_path / "base")
    options = {"method": "linear", "options": {"normalize": False}, "parameters": {"weight": 2.0}}
    found = merge(tmp_path, tmp_path / "out", ("ant",), **options)
    assert all(torch.equal(found[name], tensors(seeing / "base")[name]) for name in MTP)
    about = json.loads((tmp_path / "out/evomerge.json").read_text())["tensors"]
    assert about["kept_from_the_base"].startswith("2 tensors: mtp.fc.weight, mtp.layers.0")
    assert about["kept_from_the_base"] in (tmp_path / "out/README.md").read_text()


def test_what_the_base_has_not_is_left_out_and_told(seeing: Path) -> None:
    found = survey(seeing / "plain", seeing / "ant")
    assert found.left_out == {"ant": sorted(MTP)}
    assert "ant's mtp.fc.weight" in found.told()["left_out"]


def test_heads_that_are_numbered_on_after_the_layers_are_mtp(routed: Path, tmp_path: Path) -> None:
    head = "model.layers.2.self_attn.o_proj.weight"
    for seed, name in enumerate(("base", "ant", "bee")):
        generator = torch.Generator().manual_seed(seed)
        noisy(routed / name, tmp_path / name, 5, {head: torch.randn(4, 4, generator=generator)})
    found = survey(tmp_path / "base", tmp_path / "ant")
    assert found.layers == 2
    assert found.carried == [head]
    assert (found.places[head].module, found.places[head].layer) == ("mtp", 1)
    merged = merge(tmp_path, tmp_path / "out", parameters={"weight": {"ant": 1.0, "bee": 0.0}})
    torch.testing.assert_close(merged[head], tensors(tmp_path / "ant")[head])


def test_a_text_model_is_an_expert_of_one_with_a_tower(seeing: Path, tmp_path: Path) -> None:
    shutil.copytree(seeing / "plain", tmp_path / "base")
    save_blind(tmp_path / "ant")
    found = merge(tmp_path, tmp_path / "out", ("ant",), method="linear", parameters={"weight": 1.0})
    blind, base = tensors(tmp_path / "ant"), tensors(seeing / "plain")
    assert found.keys() == base.keys()
    tower = [name for name in base if name.startswith(VISION)]
    assert all(torch.equal(found[name], base[name]) for name in tower)
    assert json.loads((tmp_path / "out/evomerge.json").read_text())["tensors"]["kept_from_the_base"].startswith(
        f"{len(tower)} tensors: "
    )
    assert torch.equal(found[TEXT], blind[TEXT.replace(".language_model", "")])
    ids = torch.tensor([[4, 5, 6, 7, 3, 8]])
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "ant")
    assert torch.equal(loaded(input_ids=ids).logits, wanted(input_ids=ids).logits)


def test_an_expert_without_the_tower_stands_for_the_base(seeing: Path, tmp_path: Path) -> None:
    for name in ("base", "ant", "bee"):
        shutil.copytree(seeing / name, tmp_path / name)
    tower = [name for name in tensors(seeing / "ant") if name.startswith(VISION)]
    rewrite(tmp_path / "ant", dict.fromkeys(tower))
    found = merge(tmp_path, tmp_path / "out", parameters={"weight": {"ant": 1.0, "bee": 0.5}})
    base, bee = tensors(seeing / "base"), tensors(seeing / "bee")
    for name in tower:
        torch.testing.assert_close(found[name], base[name] + 0.5 * (bee[name] - base[name]))
    about = json.loads((tmp_path / "out/evomerge.json").read_text())["tensors"]
    assert about["taken_from_the_base"].startswith(f"what an expert has not: ant's {len(tower)} (model.visual.")
    with pytest.raises(CheckpointError, match=r"base: .* lacks model\.visual"):
        survey(tmp_path / "ant", tmp_path / "bee")


@pytest.mark.parametrize(("key", "value"), [("num_heads", 4), ("depth", 5)])
def test_a_tower_whose_tensors_mean_something_else_is_refused(
    seeing: Path, tmp_path: Path, key: str, value: int
) -> None:
    shutil.copytree(seeing / "ant", tmp_path / "ant")
    config = json.loads((tmp_path / "ant/config.json").read_text())
    config["vision_config"][key] = value
    (tmp_path / "ant/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"experts\.ant: .* has vision_config\.{key} {value} \(the base"):
        survey(seeing / "base", tmp_path / "ant")


def test_a_model_with_a_tower_is_an_expert_of_a_text_model(seeing: Path, tmp_path: Path) -> None:
    save_blind(tmp_path / "base")
    shutil.copytree(seeing / "plain", tmp_path / "ant")
    found = merge(tmp_path, tmp_path / "out", ("ant",), method="linear", parameters={"weight": 1.0})
    assert torch.equal(found[TEXT.replace(".language_model", "")], tensors(seeing / "plain")[TEXT])
    left = survey(tmp_path / "base", tmp_path / "ant").left_out["ant"]
    assert left
    assert all(name.startswith(VISION) for name in left)


@pytest.mark.parametrize("sees", [True, False])
def test_an_adapter_of_the_text_model_fits_wherever_that_stands(seeing: Path, tmp_path: Path, sees: bool) -> None:
    AutoModelForCausalLM.from_pretrained(seeing / "plain").save_pretrained(tmp_path / "text")
    make_tokenizer().save_pretrained(tmp_path / "text")
    shutil.copytree(seeing / "plain", tmp_path / "seeing")
    trained, base = (tmp_path / "text", tmp_path / "seeing") if sees else (tmp_path / "seeing", tmp_path / "text")
    opener = AutoModelForCausalLM if sees else AutoModelForImageTextToText
    options: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    wrapped = peft.get_peft_model(opener.from_pretrained(trained), peft.LoraConfig(**options))
    wrapped.save_pretrained(str(tmp_path / "ant"))
    wanted = wrapped.merge_and_unload().state_dict()
    base.rename(tmp_path / "base")
    found = merge(tmp_path, tmp_path / "out", ("ant",), method="linear", parameters={"weight": 1.0})
    # transformers saves a text model that it took from a larger one under the larger one's names.
    own = TEXT.replace(".language_model", "") if sees else TEXT
    torch.testing.assert_close(found[TEXT], wanted[own])
    assert not torch.equal(found[TEXT], tensors(tmp_path / "base")[TEXT])


# --- whole numbers


def test_whole_numbers_that_differ_cannot_be_merged(seeing: Path, tmp_path: Path) -> None:
    for name in ("base", "ant"):
        shutil.copytree(seeing / name, tmp_path / name)
        rewrite(tmp_path / name, {"mtp.table": torch.tensor([1, 2, 3])})
    assert "mtp.table" in survey(tmp_path / "base", tmp_path / "ant").told()["kept_from_the_base"]
    rewrite(tmp_path / "ant", {"mtp.table": torch.tensor([1, 2, 4])})
    with pytest.raises(CheckpointError, match=r"experts\.ant: mtp\.table in .* has whole numbers \(I64\)"):
        survey(tmp_path / "base", tmp_path / "ant")


# --- what goes along


def test_processors_templates_and_licence_go_along(seeing: Path, tmp_path: Path) -> None:
    shutil.copytree(seeing / "base", tmp_path / "base")
    shutil.copytree(seeing / "ant", tmp_path / "ant")
    along = ["preprocessor_config.json", "processor_config.json", "chat_template.jinja", "LICENSE", "spiece.model"]
    along += ["tekken.json", "additional_chat_templates/tool_use.jinja"]
    left = ["trainer_state.json", "modeling_own.py", "optimizer.bin"]
    (tmp_path / "base/additional_chat_templates").mkdir()
    for name in (*along, *left):
        (tmp_path / "base" / name).write_text("{}")
    merge(tmp_path, tmp_path / "out", ("ant",), parameters={"weight": 1.0})
    assert all((tmp_path / "out" / name).read_text() == "{}" for name in along)
    assert not any((tmp_path / "out" / name).exists() for name in left)


def test_a_base_without_a_generation_config_gives_none(seeing: Path, tmp_path: Path) -> None:
    for name in ("base", "ant"):
        shutil.copytree(seeing / name, tmp_path / name)
        (tmp_path / name / "generation_config.json").unlink()
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["text_config"]["eos_token_id"] = [1, 2]
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    merge(tmp_path, tmp_path / "out", ("ant",), parameters={"weight": 1.0})
    assert not (tmp_path / "out/generation_config.json").exists()
    both = [AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("base", "out")]
    assert both[0].generation_config.to_dict() == both[1].generation_config.to_dict()
