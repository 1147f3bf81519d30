"""What a recipe has no words for is refused by its key."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.mergekit_recipes import faults

TIES: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "org/base",
    "models": [{"model": "org/a", "parameters": {"weight": 0.5}}],
}
NUSLERP: dict[str, Any] = {"merge_method": "nuslerp", "models": [{"model": "a"}, {"model": "b"}]}


def sliced(*ranges: Any, **changes: Any) -> dict[str, Any]:
    """A file with slices of org/base and org/a, the ranges of each given."""
    slices = [
        {"sources": [{"model": "org/base", "layer_range": one}, {"model": "org/a", "layer_range": two}]}
        for one, two in ranges
    ]
    return {"merge_method": "sce", "base_model": "org/base", "slices": slices, **changes}


def with_weight(weight: Any) -> dict[str, Any]:
    return {**TIES, "models": [{"model": "org/a", "parameters": {"weight": weight}}]}


REFUSED: dict[str, tuple[Any, str]] = {
    "a misspelt key": ({**TIES, "dtpye": "float32"}, "dtpye: is no key here"),
    "a misspelt key of a model": ({**TIES, "models": [{"model": "a", "wieght": 1}]}, "models[0].wieght: is no key"),
    "a misspelt parameter": (
        {**TIES, "models": [*TIES["models"], {"model": "org/b", "parameters": {"wieght": 1, "weight": 1}}]},
        "models[1].parameters.wieght: mergekit has no such parameter. Did you mean 'weight'?",
    ),
    "another eps": (
        {"merge_method": "multislerp", "models": [{"model": "a"}], "parameters": {"eps": "1e-6", "weight": 1}},
        "parameters.eps: is 1e-08 in evomerge",
    ),
    "a missing weight": (
        {**TIES, "models": [*TIES["models"], {"model": "org/b"}]},
        "models[1].parameters.weight: is missing; ties needs it",
    ),
    "a missing t": (
        {"merge_method": "slerp", "base_model": "a", "models": [{"model": "b"}]},
        "parameters.t: is missing; slerp needs it",
    ),
    "a missing weight of the base that joins linear": (
        {"merge_method": "linear", "base_model": "z", "models": [{"model": "a", "parameters": {"weight": 1}}]},
        "parameters.weight: is missing; linear needs it",
    ),
    "filters that leave a tensor without a value": (
        with_weight([{"filter": "proj", "value": 1}]),
        "models[0].parameters.weight: no filter matches model.embed_tokens.weight; end with a `value`",
    ),
    "a value out of bounds": (
        with_weight([{"filter": "proj", "value": [1, ".inf"]}, {"value": True}]),
        "models[0].parameters.weight[0].value[1]: must be a number, but is '.inf'",
    ),
    "a truth as a number": (with_weight(True), "models[0].parameters.weight: must be a number, but is True"),
    "a density of 0": (
        {**TIES, "parameters": {"density": [0.5, 0.0]}},
        "parameters.density[1]: must lie in (0, 1], but is 0",
    ),
    "an empty gradient": (with_weight([]), "models[0].parameters.weight: must not be empty"),
    "numbers among filters": (
        with_weight([{"value": 1}, 2]),
        "models[0].parameters.weight[1]: must be a mapping with `value`",
    ),
    "a filter without a value": (
        with_weight([{"filter": "x"}]),
        "models[0].parameters.weight[0].value: is missing",
    ),
    "a misspelt filter": (
        with_weight({"fliter": "x", "value": 1}),
        "models[0].parameters.weight.fliter: is no key here; known: filter, value",
    ),
    "a filter that is a number": (
        with_weight({"filter": 3, "value": 1}),
        "models[0].parameters.weight.filter: must be a text, but is 3",
    ),
    "an option by filter": (
        {**TIES, "parameters": {"normalize": [{"filter": "mlp", "value": True}, {"value": False}]}},
        "parameters.normalize: must be true or false, one for the whole model",
    ),
    "an option of some slices": (
        {
            **sliced([[0, 2], [0, 2]], [[2, 4], [2, 4]]),
            "merge_method": "model_stock",
            "slices": [
                {
                    "sources": [
                        {"model": f"org/{n}", "layer_range": [2 * k, 2 * k + 2]} for n in ("base", "a", "b")
                    ],
                    "parameters": {"filter_wise": bool(k)},
                }
                for k in (0, 1)
            ],
        },
        "slices[1].parameters.filter_wise: is true here and otherwise in another slice",
    ),
    "an unknown method": ({**TIES, "merge_method": "tiess"}, "merge_method: evomerge has no method 'tiess'"),
    "a method that we lack": ({**TIES, "merge_method": "ramplus_tl"}, "merge_method: evomerge has no method"),
    "another module": (
        {"merge_method": "ties", "modules": {"text": {"models": []}}},
        "modules: names text; evomerge merges whole language models, whose one module is 'default'",
    ),
    "several modules": (
        {"merge_method": "ties", "modules": {"default": {"models": []}, "vision": {"models": []}}},
        "modules: names vision; evomerge merges whole language models",
    ),
    "a module beside models": (
        {**TIES, "modules": {"default": {"models": TIES["models"]}}},
        "modules.default.models: give one of `models`, `slices` and `modules`",
    ),
    "a module of nothing": (
        {**TIES, "models": None, "modules": {"default": {"models": []}}},
        "modules.default.models: is empty",
    ),
    "a fault in a module": (
        {
            **TIES,
            "models": None,
            "modules": {"default": {"models": [{"model": "org/a", "parameters": {"density": 0.5}}]}},
        },
        "modules.default.models[0].parameters.weight: is missing; ties needs it",
    ),
    "a fault in a slice of a module": (
        {
            "merge_method": "sce",
            "base_model": "org/base",
            "modules": {"default": {"slices": sliced([[0, 2], [0, 2]])["slices"]}},
        },
        "modules.default.slices[0].sources[0].layer_range: ends at 2, but the base has 4",
    ),
    "a filter that matches nothing": (
        with_weight([{"filter": "self_atn", "value": 1}, {"value": 0}]),
        "models[0].parameters.weight[0].filter: 'self_atn' matches no tensor in the base's files. Did you mean "
        "'self_attn'?",
    ),
    "a parameter outside of parameters": (
        {**TIES, "normalize": False},
        "normalize: is no key here, and mergekit passes it over; move it into `parameters`",
    ),
    "a seed that is no number": ({**TIES, "random_seed": "x"}, "random_seed: Input should be a valid integer"),
    "several merges": (
        {"merge_method": "ties", "merges": [{}, {}]},
        "merges: evomerge makes one model of one file",
    ),
    "models and slices": ({**sliced([[0, 4], [0, 4]]), "models": TIES["models"]}, "models: give one of"),
    "neither": (
        {"merge_method": "ties", "base_model": "x"},
        "models: give one of `models`, `slices` and `modules`",
    ),
    "no models": ({"merge_method": "ties", "base_model": "x", "models": []}, "models: is empty"),
    "stacked layers": (
        sliced([[0, 3], [0, 3]], [[1, 4], [1, 4]]),
        "slices[1].sources[0].layer_range: is [1, 4], but has to go up from 3; evomerge neither stacks",
    ),
    "layers left out": (
        sliced([[0, 2], [0, 2]]),
        "slices[0].sources[0].layer_range: ends at 2, but the base has 4",
    ),
    "more layers than there are": (
        sliced([[0, 2], [0, 2]], [[2, 6], [2, 6]]),
        "slices[1].sources[0].layer_range: ends at 6, but the base has 4 layers",
    ),
    "other layers of another model": (
        sliced([[0, 2], [2, 4]], [[2, 4], [2, 4]]),
        "slices[0].sources[1].layer_range: is [2, 4], but that of sources[0] is [0, 2]; evomerge neither stacks",
    ),
    "no layers": (sliced([None, [0, 4]]), "slices[0].sources[0].layer_range: is missing"),
    "layers of models": (
        {**TIES, "models": [{**TIES["models"][0], "layer_range": [0, 4]}]},
        "models[0].layer_range: stands in `slices` only",
    ),
    "another base in a slice": (
        {
            **sliced([[0, 2], [0, 2]], [[2, 4], [2, 4]]),
            "slices": [
                {**part, "base_model": base}
                for part, base in zip(
                    sliced([[0, 2], [0, 2]], [[2, 4], [2, 4]])["slices"], ("org/base", "org/a"), strict=True
                )
            ],
        },
        "slices[1].base_model: is org/a, but that of the first slice is org/base; evomerge takes one base",
    ),
    "a residual weight": (
        {**TIES, "models": None, "slices": [{"sources": [{"model": "a"}], "residual_weight": 0.5}]},
        "slices[0].residual_weight: evomerge has no such thing",
    ),
    "a slice without the base": (
        {
            "merge_method": "sce",
            "base_model": "z",
            "slices": [{"sources": [{"model": "a", "layer_range": [0, 4]}]}],
        },
        "slices[0].sources: lacks the base model z; list it, without parameters",
    ),
    "no base": ({**TIES, "base_model": None}, "base_model: is missing; ties needs it"),
    "a model too many": (
        {
            "merge_method": "slerp",
            "base_model": "z",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {"t": 1},
        },
        "models: slerp takes exactly 1 model, but there are 2 besides the base",
    ),
    "a model too few": (
        {**NUSLERP, "models": [{"model": "a", "parameters": {"weight": 1}}]},
        "models: nuslerp takes exactly 2 models, but there is 1",
    ),
    "a model twice": ({**TIES, "models": TIES["models"] * 2}, "models[1].model: org/a stands twice"),
    "an adapter on a model": (
        {**TIES, "models": [{"model": "org/a+org/lora"}]},
        "models[0].model: names an adapter (org/lora) on a model",
    ),
    "an adapter in a mapping": (
        {**TIES, "base_model": {"model": "a", "lora": "b"}},
        "base_model: names an adapter (b)",
    ),
    "another architecture": (
        {**TIES, "base_model": {"model": "a", "override_architecture": "X"}},
        "base_model: override_architecture cannot be given",
    ),
    "two revisions": ({**TIES, "base_model": "a@b@c"}, "base_model: must be `path` or `path@revision`"),
    "a path in a wrong place": ({**TIES, "base_model": {"path": "a"}}, "base_model: must be a path, or a mapping"),
    "another model's tokenizer": (
        {**TIES, "tokenizer_source": "org/a"},
        "tokenizer_source: is org/a; evomerge takes the base model's (org/base), or `union`",
    ),
    "the base's tokenizer without a base": (
        {"merge_method": "karcher", "models": [{"model": "a"}], "tokenizer_source": "base"},
        "tokenizer_source: is base, but there is no base_model",
    ),
    "rules for tokens": (
        {**TIES, "tokenizer": {"source": "union", "tokens": {"<|im_start|>": {"source": "org/a"}}}},
        "tokenizer.tokens: evomerge has no rules for single tokens",
    ),
    "a padded vocabulary": (
        {**TIES, "tokenizer": {"pad_to_multiple_of": 64}},
        "tokenizer.pad_to_multiple_of: evomerge does not pad vocabularies",
    ),
    "two tokenizers": (
        {**TIES, "tokenizer": {"source": "base"}, "tokenizer_source": "union"},
        "tokenizer: cannot stand beside tokenizer_source",
    ),
    "a chat template": (
        {**TIES, "chat_template": "chatml"},
        "chat_template: evomerge keeps the base's chat template",
    ),
    "a dtype that we lack": (
        {**TIES, "dtype": "float64"},
        "dtype: Input should be 'float32', 'bfloat16' or 'float16'",
    ),
}


@pytest.mark.parametrize(("data", "fault"), REFUSED.values(), ids=REFUSED)
def test_what_a_recipe_cannot_say_is_refused_by_its_key(data: dict[str, Any], fault: str) -> None:
    assert any(line.startswith(fault) for line in faults(data)), faults(data)


def test_all_faults_are_told_at_once() -> None:
    found = faults(
        """
        merge_method: ties
        base_model: org/base
        models:
          - {model: org/a, parameters: {wieght: 1, density: 2}}
          - {model: org/a, parameters: {weight: x}}
        parameters: {normalise: true}
        tokenizer_source: org/c
        """
    )
    assert [line.partition(":")[0] for line in found] == [
        "tokenizer_source",
        "models[1].model",
        "models[0].parameters.weight",
        "parameters.normalise",
        "models[0].parameters.wieght",
        "models[0].parameters.density",
        "models[1].parameters.weight",
    ]
