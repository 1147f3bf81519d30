"""What is wrong with a search space is said with its key and the cure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from evomerge import plugins
from evomerge.files.schema import faults_of
from evomerge.searching.spaces import faults
from tests.helpers.made_spaces import GENE, SOURCE, SWITCH, make
from tests.helpers.merging import merge


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "tie"}, "Did you mean 'ties'"),
        ({"modules": ["attn"]}, "modules: unknown module group 'attn'"),
        ({"genes": {}}, "nothing to search"),
        ({"genes": {"wait": GENE}}, "genes.wait: task_arithmetic has no such parameter. Did you mean 'weight'"),
        ({"genes": {"weight": {"low": 1.0, "high": 0.0}}}, "low must be below high"),
        ({"genes": {"weight": {**GENE, "init": 2.0}}}, "init must lie in [0, 1]"),
        ({"genes": {"weight": {**GENE, "scale": "log"}}}, "a log scale needs a positive low"),
        ({"genes": {"weight": {**GENE, "per": ["layer", "layer"]}}}, "genes.weight.per: names an axis twice"),
        ({"genes": {"weight": {**GENE, "step": 0.0}}}, "step must be positive, but is 0"),
        ({"genes": {"weight": {**GENE, "step": 0.3}}}, "high must lie a whole number of steps of 0.3 above 0, low"),
        ({"genes": {"weight": {**GENE, "step": 2.0}}}, "high must lie a whole number of steps of 2 above 0, low"),
        ({"genes": {"weight": {**GENE, "step": 0.2, "init": 0.5}}}, "init must lie a whole number of steps"),
        (
            {"genes": {"weight": {"low": 0.1, "high": 1.0, "step": 0.1, "scale": "log"}}},
            "a log scale takes no step",
        ),
        ({"genes": {"weight": GENE, "lambda": {**GENE, "per": ["expert"]}}}, "one lambda for all experts"),
        ({"modules": []}, "genes.weight.per: has module, but the space lists no modules"),
        ({"fixed": {"weight": 1.0}}, "fixed.weight: is a gene as well"),
        (
            {"fixed": {"normalise": True}},
            "fixed.normalise: task_arithmetic has no such key. Did you mean 'normalize'",
        ),
        ({"fixed": {"normalize": 1.5}}, "fixed.normalize: must be true or false"),
        ({"genes": {"lambda": GENE}}, "genes.weight: task_arithmetic needs it"),
        ({"layers": {"anchors": 1}}, "anchors must be at least 2"),
        ({"layers": {"groups": 2, "anchors": 3}}, "give either groups or anchors"),
        (
            {"method": "ties", "genes": {"weight": GENE, "density": GENE}},
            "genes.density.low: must lie in (0, 1], but is 0",
        ),
    ],
)
def test_faults_name_the_key_and_the_cure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make(**changes)
    assert message in "\n".join(faults_of(caught.value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ["ties"]}, "method"),
        ({"method": ["ties", "ties"]}, "choose names a method twice"),
        ({"method": ["ties", "tise"]}, "method: unknown method 'tise'. Did you mean 'ties'"),
        ({"method": ["della", "ram"]}, "mean different things by epsilon"),
        (
            {"method": {"choose": ["ties", "linear"], "per": ["module"]}, "modules": []},
            "method.per: has module, but",
        ),
        ({"method": ["ties", "linear"]}, "genes.density: ties or linear needs it"),
        ({"modules": ["atention"]}, "modules: unknown module group 'atention'"),
        ({"modules": ["mlp", "*q*", "mlp"]}, "modules: names 'mlp' twice"),
    ],
)
def test_faults_of_methods_and_patterns_name_the_key_and_the_cure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make(**changes)
    assert message in "\n".join(faults_of(caught.value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genes": {"switch": {"per": ["layer"]}}, "layers": {"anchors": 2}}, "genes.switch.per: has layer, but"),
        ({"genes": {"source": {"per": ["layer"]}}, "layers": {"anchors": 2}}, "genes.source.per: has layer, but"),
        ({"genes": {"source": {"per": ["module"]}}, "modules": []}, "genes.source.per: has module, but"),
        ({"genes": {"source": {"per": ["expert"]}}}, "genes.source.per.0"),
        ({"genes": {"source": {"per": ["layer", "layer"]}}}, "genes.source.per: names an axis twice"),
        ({"genes": {"switch": {"init": "maybe"}}}, "genes.switch.init"),
        ({"genes": {"switch": {"low": 0.0}}}, "genes.switch.low: is no key here"),
        ({"genes": {**SWITCH, **SOURCE}}, "genes.source: a space has either a source or switches"),
        ({"method": "slerp", "genes": {"t": GENE, **SWITCH}}, "genes.switch: slerp has no weight of each expert"),
        ({"method": "linear", "genes": SWITCH}, "genes.switch: may set all weights to 0, of which linear"),
        (
            {"method": ["ties", "karcher"], "genes": SOURCE},
            "genes.source.base: may set all weights to 0, of which kar",
        ),
        (
            {"method": "linear", "genes": {"source": {"mix": True}, "weight": GENE}},
            "genes.source: may choose an expert of weight 0, which alone is no model to linear",
        ),
        (
            {"method": "linear", "genes": {"source": {}}, "fixed": {"weight": {"a": [1.0, 0], "b": 1.0}}},
            "genes.source: may choose an expert of weight 0",
        ),
    ],
)
def test_faults_of_switches_and_sources_name_the_key_and_the_cure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make(**changes)
    assert message in "\n".join(faults_of(caught.value))


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_only_methods_that_make_the_base_of_weights_of_0_may_have_all_of_them_off(name: str) -> None:
    method = plugins.load("methods", name)
    if "weight" not in {parameter.name for parameter in method.PARAMETERS} or faults.needs_weights(name):
        return
    base, *experts = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    for on in range(2 ** len(method.OPTIONS)):
        options = {option: bool(on >> k & 1) for k, option in enumerate(method.OPTIONS)}
        merged = merge(name, base, dict(zip("ab", experts, strict=True)), options, weight=0.0, density=0.5)
        assert torch.equal(merged, base)


def test_methods_that_need_weights_are_those_without_a_lambda() -> None:
    needy = {name for name in plugins.names("methods") if faults.needs_weights(name)}
    assert needy == {"karcher", "linear", "multislerp", "nuslerp"}
