"""Configurations in the manner of published model cards: each runs, or is refused for the reason at its top."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralForCausalLM

from evomerge.errors import EvomergeError
from evomerge.results.exporting.several_merges import merge_file
from tests.helpers.family import save_family
from tests.helpers.inputs import live, save_mixtures, silent

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.yaml"))
LAYERS = 4

Models = Mapping[str, Mapping[str, Tensor]]  # model -> tensor -> its values


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders models/ (base, ant, bee, cat) and mixtures/ (base, ant)."""
    folder = save_family(tmp_path_factory.mktemp("corpus"))
    save_mixtures(folder / "mixtures")
    cat = AutoModelForCausalLM.from_pretrained(folder / "models/base")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in cat.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    (folder / "models/cat").mkdir()
    for file in (folder / "models/base").iterdir():
        (folder / "models/cat" / file.name).write_bytes(file.read_bytes())
    cat.save_pretrained(folder / "models/cat")
    return folder


def run(path: Path, models: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The merged model's tensors."""
    monkeypatch.chdir(models)
    return live(merge_file(path, out, silent))


def reasons(path: Path) -> list[str]:
    """The reasons at the top of a configuration for which it has to be refused."""
    return re.findall(r"^# refused: (.*)$", path.read_text(), re.MULTILINE)


RUN = [path for path in CORPUS if not reasons(path)]
REFUSED = [path for path in CORPUS if reasons(path)]


def test_the_corpus_is_all_there() -> None:
    assert len(RUN) >= 20
    assert len(REFUSED) >= 9
    assert set(REFERENCES) <= {path.stem for path in RUN}


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_a_published_configuration_makes_a_finite_model(
    path: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = run(path, models, tmp_path / "out", monkeypatch)
    parents = _parents(models, merged)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in merged.values())
    assert any(not torch.equal(merged[name], tensor) for name, tensor in parents["base"].items())
    if reference := REFERENCES.get(path.stem):
        for name in merged:
            expected = reference({model: tensors[name].double() for model, tensors in parents.items()}, name)
            torch.testing.assert_close(merged[name], expected.float(), rtol=2e-5, atol=2e-6, msg=_named(name))


def _named(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


def _parents(models: Path, merged: Mapping[str, Tensor]) -> Models:
    folder = models / ("mixtures" if any("experts" in name for name in merged) else "models")
    return {one.name: live(one) for one in folder.iterdir()}


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_a_configuration_that_we_cannot_build_is_refused_for_its_reason(
    path: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EvomergeError) as caught:
        run(path, models, tmp_path / "out", monkeypatch)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(reasons(path)), lines
    for line, reason in zip(sorted(lines), sorted(reasons(path)), strict=True):
        assert f": {reason}" in line
    assert not list(tmp_path.iterdir()), "something is left behind"


# --- what mergekit makes of some of them, in plain formulas: (model -> float64 tensor, its name) -> the merged one


def layer_of(name: str) -> int | None:
    match = re.search(r"\.layers\.(\d+)\.", name)
    return int(match.group(1)) if match else None


def spread(name: str, *values: float, layers: int = LAYERS) -> float:
    """A gradient's value: spread over the layers, and its first number elsewhere."""
    place = (layer_of(name) or 0) / (layers - 1) * (len(values) - 1)
    left = min(math.floor(place), len(values) - 2) if len(values) > 1 else 0
    right = min(left + 1, len(values) - 1)
    return values[left] + (place - left) * (values[right] - values[left])


def slerp(t: float, a: Tensor, b: Tensor) -> Tensor:
    cosine = float((a * b).sum() / a.norm() / b.norm())
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def ties(base: Tensor, experts: list[tuple[Tensor, float, float]], *, normalize: bool = True) -> Tensor:
    """Experts with their weights and densities."""
    trimmed = []
    for expert, _, density in experts:
        delta = expert - base
        kept = max(1, int(density * delta.numel()))
        least = delta.abs().flatten().sort(descending=True).values[kept - 1]
        trimmed.append(torch.where(delta.abs() >= least, delta, 0.0))
    weighted = torch.stack([weight * delta for (_, weight, _), delta in zip(experts, trimmed, strict=True)])
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agrees = weighted.sign() == sign
    divisor = sum((weight * own for (_, weight, _), own in zip(experts, agrees, strict=True)), torch.zeros(()))
    divisor = torch.where(divisor == 0, 1.0, divisor) if normalize else torch.ones(())
    return base + (weighted * agrees).sum(0) / divisor


def karcher(vectors: list[Tensor]) -> Tensor:
    units = [vector / vector.norm() for vector in vectors]
    mean = torch.stack(units).mean(0)
    mean = mean / mean.norm()
    for _ in range(200):
        tangent = torch.zeros_like(mean)
        for unit in units:
            cosine = (mean * unit).sum().clamp(-1, 1)
            angle = cosine.arccos()
            tangent += angle / angle.sin() * (unit - cosine * mean) / len(units)
        step = tangent.norm()
        if float(step) < 1e-14:
            break
        mean = step.cos() * mean + step.sin() * tangent / step
        mean = mean / mean.norm()
    merged: Tensor = mean * torch.stack([vector.norm() for vector in vectors]).mean()
    return merged


def model_stock(base: Tensor, experts: list[Tensor]) -> Tensor:
    deltas = [expert - base for expert in experts]
    pairs = [(a, b) for place, a in enumerate(deltas) for b in deltas[:place]]
    cosine = sum(float((a * b).sum() / a.norm() / b.norm()) for a, b in pairs) / len(pairs)
    share = len(experts) * cosine / (1 + (len(experts) - 1) * cosine)
    return share * torch.stack(experts).mean(0) + (1 - share) * base


def slerp_gradients(w: Mapping[str, Tensor], name: str) -> Tensor:
    gradients = {"self_attn": (0, 0.5, 0.3, 0.7, 1), "mlp": (1, 0.5, 0.7, 0.3, 0)}
    values = next((values for part, values in gradients.items() if part in name), (0.5,))
    return slerp(spread(name, *values), w["base"], w["ant"])


def tied_head(w: Mapping[str, Tensor], name: str) -> Tensor:
    if "embed_tokens" in name or "lm_head" in name:
        t = 0.25
    else:
        t = 0.5 if "layernorm" in name else spread(name, 0, 1)
    return slerp(t, w["base"], w["bee"])


def task_arithmetic_module(w: Mapping[str, Tensor], name: str) -> Tensor:
    ant, bee = w["ant"] - w["base"], w["bee"] - w["base"]
    return w["base"] + 0.9 * (spread(name, 0.9, 0.2) * ant + 0.5 * bee)


def nearswap(w: Mapping[str, Tensor], name: str) -> Tensor:
    return w["base"] + (w["ant"] - w["base"]).clamp(-0.0001, 0.0001)


def passthrough_scaled(w: Mapping[str, Tensor], name: str) -> Tensor:
    scaled = (layer_of(name) or 0) >= 2 and ("o_proj" in name or "down_proj" in name)
    return (0.5 if scaled else 1.0) * w["ant"]


def in_two_steps(w: Mapping[str, Tensor], name: str) -> Tensor:
    halves = (w["ant"] + w["bee"]) / 2
    return w["base"] + 0.5 * (halves - w["base"]) + 0.25 * (w["cat"] - w["base"])


def mixtral_filters(w: Mapping[str, Tensor], name: str) -> Tensor:
    if name.endswith("mlp.gate.weight"):
        weight = 0.1
    elif name.endswith("experts.down_proj"):
        weight = 0.25
    elif name.endswith("experts.gate_up_proj"):
        weight = spread(name, 0.5, 0.75, layers=2)
    else:
        weight = 0.9 if "layers.1.self_attn" in name else 0.0
    return w["base"] + weight * (w["ant"] - w["base"])


REFERENCES: dict[str, Callable[[Mapping[str, Tensor], str], Tensor]] = {
    "slerp_gradients": slerp_gradients,
    "tied_head": tied_head,
    "ties_three": lambda w, _: ties(w["base"], [(w["ant"], 0.5, 0.5), (w["bee"], 0.3, 0.5)]),
    "shared_parameters": lambda w, _: ties(w["base"], [(w["ant"], 0.5, 0.5), (w["bee"], 0.3, 0.5)]),
    "linear_quoted": lambda w, _: (0.6 * w["ant"] + 0.2 * w["bee"]) / 0.8,
    "linear_null_weights": lambda w, _: (w["ant"] + 3 * w["bee"]) / 4,
    "task_arithmetic_module": task_arithmetic_module,
    "karcher_long": lambda w, _: karcher([w["ant"], w["bee"], w["cat"]]),
    "model_stock": lambda w, _: model_stock(w["base"], [w["ant"], w["bee"], w["cat"]]),
    "nearswap": nearswap,
    "passthrough_scaled": passthrough_scaled,
    "in_two_steps": in_two_steps,
    "mixtral_filters": mixtral_filters,
}


def test_the_mixture_is_one_whose_tensors_transformers_fuses(models: Path) -> None:
    model = MixtralForCausalLM.from_pretrained(models / "mixtures/base")
    assert "model.layers.0.mlp.experts.gate_up_proj" in model.state_dict()
