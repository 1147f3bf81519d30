"""Distillation heals a merge: it trains once, keeps what it changed, and gives the same bits again."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, MixtralConfig

from evomerge.errors import CandidateError
from evomerge.files import hashed_tensors, hashing
from evomerge.files.schema import faults_of
from evomerge.models.rope import set_rope
from evomerge.operators import Applied, Context, distillation
from evomerge.operators.distillation import Options
from evomerge.operators.training.lessons import row_length
from tests.helpers.family import LETTERS, make_tokenizer, save_family

Open = Callable[..., Any]
SMALL: dict[str, Any] = {"length": 24, "batch": 8, "steps": 4, "lr": 1e-2}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """A file of plain text and one of prompts with completions."""
    rng = random.Random(0)
    (tmp_path / "ants.txt").write_text("".join(rng.choices(LETTERS, k=600)))
    pairs = [{"prompt": "".join(rng.choices(LETTERS, k=5)) + "=", "completion": "abcab"} for _ in range(20)]
    (tmp_path / "bees.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    return {"ants": str(tmp_path / "ants.txt"), "bees": str(tmp_path / "bees.jsonl")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The base and the experts of a family, and `merged`, the experts' mean."""
    folder = save_family(tmp_path_factory.mktemp("small"), layers=2) / "models"
    found = {
        name: AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval().requires_grad_(False)
        for name in ("base", "ant", "bee")
    }
    found["merged"] = copy.deepcopy(found["ant"])
    for name, parameter in found["bee"].named_parameters():
        found["merged"].get_parameter(name).lerp_(parameter, 0.5)
    return found


@pytest.fixture
def merged(models: dict[str, Any]) -> Open:
    return lambda: copy.deepcopy(models["merged"])


@pytest.fixture
def context(models: dict[str, Any], tmp_path: Path) -> Callable[..., Context]:
    def make(kept: str = "kept", folder: str = "cache", **changes: Any) -> Context:
        def parent(name: str) -> nn.Module:
            model: nn.Module = copy.deepcopy(models[name])
            return model

        given: dict[str, Any] = {
            "seed": 0,
            "tokenizer": make_tokenizer(),
            "folder": tmp_path / folder,
            "kept": tmp_path / f"{kept}.safetensors",
            "parent": parent,
            "identity": {"base": "00", "ant": "01", "bee": "02"},
        }
        return Context(**{**given, **changes})

    return make


def options(data: Mapping[str, Any], **changes: Any) -> Options:
    return Options.model_validate({"data": data, "teachers": {"ants": "ant", "bees": "bee"}, **SMALL, **changes})


def bits(model: nn.Module) -> str:
    return hashing.sha256(dict(model.named_parameters()))


def structure(model: Any) -> Any:
    return (
        model.training,
        model.config._attn_implementation,
        [(name, type(m).__name__, m.training, dict(m._forward_hooks)) for name, m in model.named_modules()],
        [(name, p.requires_grad, p.grad, p.dtype, p._backward_hooks) for name, p in model.named_parameters()],
        [sorted(vars(module)) for module in model.modules()],
    )


def no_parent(name: str) -> nn.Module:
    raise AssertionError(f"{name} is asked for again")


def heal(merged: Open, given: Options, context: Context) -> tuple[Any, Applied]:
    model = merged()
    return model, distillation.apply(model, given, context)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_no_steps_change_no_bit(method: str, merged: Open, data: dict[str, str], context: Any) -> None:
    model, applied = heal(merged, options(data, method=method, steps=0), context(parent=no_parent))
    assert bits(model) == bits(merged())
    assert applied.cost.steps == 0
    assert context().kept.is_file()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loss_falls_and_the_file_gives_the_same_bits_again(
    method: str, merged: Open, data: dict[str, str], context: Any
) -> None:
    given = options(data, method=method, steps=12)
    before = structure(merged())
    model, applied = heal(merged, given, context())
    assert structure(model) == before
    assert bits(model) != bits(merged())
    assert applied.record["after"] < 0.9 * applied.record["before"]
    again, second = heal(merged, given, context(parent=no_parent, folder="elsewhere"))
    assert bits(again) == bits(model)
    assert second == Applied(second.undo, applied.record, applied.cost)
    json.dumps(applied.record, allow_nan=False)
    assert applied.record["teachers"] == {"ant": "01", "bee": "02"}
    assert applied.record["data"]["ants"] == hashing.file_sha256(Path(data["ants"]))
    assert [step for step, _ in applied.record["loss"]] == list(range(1, 13))
    assert applied.cost.steps == 12
    assert applied.cost.tokens == applied.record["tokens"] > 0
    applied.undo()
    assert bits(again) == bits(model)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_again_gives_the_same_hash_and_another_seed_another(
    method: str, merged: Open, data: dict[str, str], context: Any
) -> None:
    given = options(data, method=method)
    one, two, three = (
        heal(merged, given, context(kept, seed=seed))[1].record["sha256"]
        for kept, seed in (("one", 0), ("two", 0), ("three", 1))
    )
    assert one == two != three


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_bfloat16_model_heals_in_its_own_dtype(
    method: str, models: dict[str, Any], data: dict[str, str], context: Any
) -> None:
    def parent(name: str) -> nn.Module:
        model: nn.Module = copy.deepcopy(models[name]).bfloat16()
        return model

    model: Any = parent("merged")
    before = structure(model)
    applied = distillation.apply(model, options(data, method=method, steps=12), context(parent=parent))
    assert structure(model) == before
    assert applied.record["after"] < 0.9 * applied.record["before"]
    kept = hashed_tensors.read(context().kept)
    assert kept is not None
    assert {tensor.dtype for tensor in kept[0].values()} == {torch.float32 if method == "lora" else torch.bfloat16}
    assert len(list(context().folder.iterdir())) == 2


def test_all_answers_kept_equal_a_live_teacher(merged: Open, data: dict[str, str], context: Any) -> None:
    for changes in (
        {},
        {"loss": {"kind": "jsd", "temperature": 2.0}},
        {"loss": {"kind": "reverse_kl", "hard": 0.3}},
    ):
        name = str(changes)[:20]
        live = heal(merged, options(data, targets="live", **changes), context(f"live{name}"))[1].record
        kept = heal(merged, options(data, targets=14, **changes), context(f"kept{name}"))[1].record
        assert [loss for _, loss in kept["loss"]] == pytest.approx([loss for _, loss in live["loss"]], abs=1e-5)
        assert kept["before"] == pytest.approx(live["before"], abs=1e-5)


def test_answers_are_computed_once(merged: Open, data: dict[str, str], context: Any) -> None:
    given = options(data, targets=4)
    first = heal(merged, given, context("one"))[1].record["sha256"]
    made = sorted(context().folder.iterdir())
    assert len(made) == 2
    assert heal(merged, given, context("two", parent=no_parent))[1].record["sha256"] == first
    made[0].write_bytes(made[0].read_bytes()[:-1])
    assert heal(merged, given, context("three"))[1].record["sha256"] == first
    assert sorted(context().folder.iterdir()) == made


def test_answers_to_other_questions_are_others(merged: Open, data: dict[str, str], context: Any) -> None:
    others: list[dict[str, Any]] = [{}, {"targets": 3}, {"length": 10}, {"loss": {"temperature": 2.0}}]
    for number, changes in enumerate(others):
        heal(merged, options(data, **changes), context(f"kept{number}"))
    assert len(list(context().folder.iterdir())) == 8
    heal(merged, options(data, rank=2, loss={"kind": "jsd"}), context("kept4", parent=no_parent))


def test_several_teachers_for_a_domain_are_refused(data: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        options(data, teachers={"ants": ["ant", "bee"], "bees": "bee"})
    assert faults_of(caught.value) == ["teachers: one model teaches a domain; name one for ants, not a list"]


def test_texts_of_the_student_are_refused(data: dict[str, str]) -> None:
    for text in ("student", "speculative"):
        with pytest.raises(ValidationError) as caught:
            options(data, text=text)
        assert faults_of(caught.value) == ["text: Input should be 'data' or 'teacher'"]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["data", "teacher"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_kind_of_text_runs_and_repeats(
    text: str, method: str, merged: Open, data: dict[str, str], context: Any
) -> None:
    given = options(data, text=text, method=method, steps=3, checkpointing=True)
    before = structure(merged())
    model, applied = heal(merged, given, context("one"))
    assert structure(model) == before
    assert heal(merged, given, context("two"))[1].record["sha256"] == applied.record["sha256"]
    assert applied.record["steps"] == 3
    assert applied.record["after"] < applied.record["before"]


def test_hard_labels_ask_no_teacher(merged: Open, data: dict[str, str], context: Any) -> None:
    given = Options.model_validate({"data": data, "loss": {"hard": 1.0}, **SMALL})
    record = heal(merged, given, context(parent=no_parent))[1].record
    assert record["after"] < record["before"]
    assert record["teachers"] == {}
    assert distillation.teachers(given) == set()


def test_teachers_texts_alone_are_learned_without_their_answers(
    merged: Open, data: dict[str, str], context: Any
) -> None:
    given = options(data, text="teacher", loss={"hard": 1.0})
    heal(merged, given, context("one"))
    assert [path.name.split("-")[0] for path in context().folder.iterdir()] == ["texts", "texts"]
    heal(merged, given, context("two", seed=5, parent=no_parent))


def test_budgets_end_training(merged: Open, data: dict[str, str], context: Any) -> None:
    record = heal(merged, options(data, steps=50, tokens=300), context("one"))[1].record
    step = record["tokens"] / record["steps"]
    assert 300 <= record["tokens"] < 300 + 1.5 * step
    model, applied = heal(merged, options(data, steps=500, seconds=1e-6), context("two"))
    assert applied.record["steps"] == 0
    assert bits(model) == bits(merged())


def test_checkpointing_changes_no_loss(merged: Open, data: dict[str, str], context: Any) -> None:
    plain = heal(merged, options(data), context("one"))[1].record["loss"]
    again = heal(merged, options(data, checkpointing=True), context("two"))[1].record["loss"]
    assert [loss for _, loss in again] == pytest.approx([loss for _, loss in plain], rel=1e-5)


def test_small_batches_sum_to_the_same_step(merged: Open, data: dict[str, str], context: Any) -> None:
    whole = heal(merged, options(data), context("one"))[1].record["loss"]
    parts = heal(merged, options(data, batch_tokens=24), context("two"))[1].record["loss"]
    assert [loss for _, loss in parts] == pytest.approx([loss for _, loss in whole], rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("poison", ["weights", "rate"])
def test_a_loss_that_is_not_finite_fails_the_candidate_alone(
    poison: str, method: str, merged: Open, data: dict[str, str], context: Any
) -> None:
    model = merged()
    before = structure(model)
    if poison == "weights":
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    given = options(data, method=method, lr=1e-2 if poison == "weights" else 1e30)
    with pytest.raises(CandidateError, match="training failed at step"):
        distillation.apply(model, given, context())
    assert structure(model) == before
    assert not context().kept.exists()


def test_memory_that_does_not_do_is_told_as_such(merged: Open, data: dict[str, str], context: Any) -> None:
    def full(step: int, measured: Mapping[str, float]) -> None:
        raise torch.OutOfMemoryError("full")

    model = merged()
    before = structure(model)
    with pytest.raises(torch.OutOfMemoryError):
        distillation.apply(model, options(data, method="full"), context(report=full))
    assert structure(model) == before


def test_a_changed_corpus_is_refused(merged: Open, data: dict[str, str], context: Any) -> None:
    changed = {**data, "ants": {"path": data["ants"], "sha256": "0" * 64}}
    with pytest.raises(CandidateError, match=r"data\.ants: .* it was changed"):
        heal(merged, options(changed), context())
    right = {**data, "ants": {"path": data["ants"], "sha256": hashing.file_sha256(Path(data["ants"]))}}
    heal(merged, options(right), context())


def test_a_broken_corpus_fails_in_one_line(merged: Open, data: dict[str, str], context: Any) -> None:
    Path(data["bees"]).write_text('{"text": "ab"}\n{"txt": "ab"}\n')
    with pytest.raises(CandidateError, match=r"^data\.bees: .*bees\.jsonl: line 2: must be [^\n]*$"):
        heal(merged, options(data), context())


def test_a_damaged_file_and_another_models_are_refused(merged: Open, data: dict[str, str], context: Any) -> None:
    heal(merged, options(data), context())
    path = context().kept
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(CandidateError, match="is damaged; remove it"):
        heal(merged, options(data), context())
    path.write_bytes(whole)
    other = merged()
    other.model.layers[0].mlp.up_proj = nn.Linear(32, 40)
    with pytest.raises(CandidateError, match="another shape"):
        distillation.apply(other, options(data), context())


@pytest.mark.parametrize("config", [Gemma3TextConfig, GPT2Config, MixtralConfig], ids=lambda one: one.model_type)
def test_other_architectures_heal_and_stay_as_they_are(config: Any, data: dict[str, str], context: Any) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    rest = {} if config is GPT2Config else {"num_key_value_heads": 2, "head_dim": 16}

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        sizes = {"vocab_size": 14, "max_position_embeddings": 64, "pad_token_id": 0, **shape, **rest}
        made = AutoModelForCausalLM.from_config(config(**sizes, bos_token_id=None, eos_token_id=1))
        for parameter in made.parameters():
            parameter.data.mul_(2.0)
        return made.eval().requires_grad_(False)

    model, again = make(1), make(1)
    before = structure(model)
    record = distillation.apply(model, options(data, steps=8), context(parent=lambda name: make(0))).record
    assert record["after"] < 0.9 * record["before"]
    assert structure(model) == before
    distillation.apply(again, options(data, steps=8), context(parent=no_parent))
    assert bits(again) == bits(model)


def test_teachers_of_another_vocabulary_are_refused(merged: Open, data: dict[str, str], context: Any) -> None:
    def larger(name: str) -> nn.Module:
        model = merged()
        model.resize_token_embeddings(20, mean_resizing=False)
        return model  # type: ignore[no-any-return]

    with pytest.raises(CandidateError, match="ant answers for 20 tokens, but the merged model has 14"):
        heal(merged, options(data), context(parent=larger))


def test_the_faults_of_options(merged: Open, data: dict[str, str], tmp_path: Path) -> None:
    config = merged().config
    assert distillation.check(options(data), config) == []
    alone = Options.model_validate({"data": data, "loss": {"hard": 1.0}, "length": 24})
    assert distillation.check(alone, config) == []
    wrong = options(
        {**data, "cats": str(tmp_path / "cats.txt"), "dogs": data["ants"] + ".zip"},
        teachers={"ants": "ant", "bees": "bee", "cows": "ant", "dogs": "base"},
        batch=2,
        length=65,
    )
    assert [fault.split(": ")[0] for fault in distillation.check(wrong, config)] == [
        "data.cats",
        "teachers",
        "data.dogs",
        "teachers.cows",
        "batch",
        "length",
    ]
    assert distillation.reach(wrong, config) is None


def test_what_it_expects_is_near_what_it_takes(merged: Open, data: dict[str, str], context: Any) -> None:
    given = options({"ants": data["ants"]}, teachers={"ants": "ant"}, method="full", rows=20)
    parameters = sum(p.numel() for p in merged().parameters())
    expected, applied = distillation.estimate(given, parameters), heal(merged, given, context())[1]
    assert expected.steps == applied.cost.steps
    assert expected.tokens == pytest.approx(applied.cost.tokens, rel=0.1)
    assert expected.peak_bytes == applied.cost.peak_bytes
    assert applied.cost.disk_bytes <= expected.disk_bytes
    large = distillation.estimate(Options.model_validate({"data": data, "teachers": given.teachers}), 7_000_000_000)
    assert 15e6 < large.peak_bytes / 16 < 30e6


def test_it_says_which_files_and_teachers_it_wants(data: dict[str, str]) -> None:
    given = options(data, teachers={"ants": "base", "bees": "bee"})
    assert distillation.teachers(given) == {"base", "bee"}
    assert {domain: file.path for domain, file in distillation.corpora(given).items()} == data
    assert Options.model_validate(given.model_dump(mode="json")) == given


def test_rows_are_by_default_no_longer_than_the_model_reads(
    merged: Open, data: dict[str, str], context: Any
) -> None:
    given = options(data, length=None, steps=1)
    assert distillation.check(given, merged().config) == []
    model = merged()
    assert row_length(model, 512) == 64
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    set_rope(model, yarn, max_position_embeddings=128)
    assert row_length(model, 512) == 64, "its teachers read no further"
    assert heal(merged, given, context())[1].record["steps"] == 1
