"""A tiny byte-level Llama, its two experts, their merge, and what distillation brings back.

0.12 M parameters, two layers, rows of 128 bytes. The base learns three domains that every Python carries; the
experts learn one each of the first two. The third, which no expert is trained on and no healing sees, shows what is
lost elsewhere: names of characters, as far from prose and code as a text of this alphabet can be, and the same for
each version of Unicode.

    prose   paragraphs of the Python reference (`long_context`)
    code    modules of the standard library
    names   of Unicode characters, one a line, shuffled

Each is cut into sectors, of which some train, one in five heals, and one in five is held out.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import statistics
import sysconfig
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import operators_context
import torch

from evomerge.operators import Context, distillation
from evomerge.operators.training import corpus, forward, loop, losses
from evomerge.operators.training.corpus import Row
from evomerge.operators.training.loop import Sample
from evomerge.scoring.documents.texts import read_text

DOMAINS = ("prose", "code", "names")
TAUGHT = DOMAINS[:2]  # those that have an expert
LENGTH = 128
STEPS, BATCH = 40, 16
HEALED = 256  # rows of each domain to heal on, 32 kB
ASKED = 128  # rows of each domain that are held out
TOP_K = 8
RECIPES, GROUPS = 16, 3  # of the elites' test: recipes, groups of layers that have weights of their own
# Heights of the learning rates, chosen on seed 10 for hard labels and for teachers' answers apart: of a few each
# the lowest whose mean log-loss is within 0.001 of the best. They came to the same.
RATES = {("full", "hard"): 3e-4, ("full", "soft"): 3e-4, ("lora", "hard"): 5e-3, ("lora", "soft"): 5e-3}

_SECTORS = 60
_MODULES = (
    *("argparse", "ast", "calendar", "configparser", "dataclasses", "datetime", "difflib", "doctest", "enum"),
    *("fractions", "ftplib", "inspect", "ipaddress", "locale", "mailbox", "optparse", "pickle", "platform"),
    *("shutil", "smtplib", "socket", "statistics", "subprocess", "tarfile", "threading", "typing", "zipfile"),
)
_UNNAMED = ("CJK ", "HANGUL SYLLABLE", "TANGUT", "KHITAN", "NUSHU")  # whose names are numbers or readings


@cache
def text(domain: str) -> bytes:
    """A domain's whole text, in ASCII."""
    if domain == "prose":
        return read_text("python").decode().encode("ascii", "ignore")
    if domain == "code":
        library = Path(sysconfig.get_paths()["stdlib"])
        return (
            b"\n".join((library / f"{name}.py").read_bytes() for name in _MODULES)
            .decode()
            .encode("ascii", "ignore")
        )
    names = [unicodedata.name(chr(code), "") for code in range(0x110000)]
    chosen = [name for name in names if name and not name.startswith(_UNNAMED)]
    random.Random("names").shuffle(chosen)
    return "\n".join(chosen[:12_000]).encode()


def part(domain: str, which: str) -> bytes:
    """What of a domain is for `training`, for `healing`, or `held` out."""
    whole, wanted = text(domain), {"held": (4,), "healing": (2,), "training": (0, 1, 3)}[which]
    edges = [len(whole) * at // _SECTORS for at in range(_SECTORS + 1)]
    return b"".join(whole[edges[at] : edges[at + 1]] for at in range(_SECTORS) if at % 5 in wanted)


def rows(domain: str, which: str, most: int | None = None) -> list[Row]:
    """The rows of a part; the first of so many evenly spread ones, if there are more."""
    found = [row for row in corpus.cut(list(part(domain, which)), 1, LENGTH) if len(row.ids) == LENGTH]
    return found if most is None else [found[number * len(found) // most] for number in range(most)]


class Bytes:
    """The tokenizer that the operator asks for: a token is a byte."""

    eos_token_id = None

    def __call__(self, content: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(content.encode())}


@dataclass(frozen=True)
class Family:
    """Trained models. experts: by domain. folder: of the healing texts and of what operators keep."""

    base: Any
    experts: Mapping[str, Any]
    folder: Path
    seed: int

    def parent(self, name: str) -> Any:
        """A copy of the base or of an expert."""
        return copy.deepcopy(self.base if name == "base" else self.experts[name])

    def merged(self, weights: Sequence[Mapping[str, float]] = ({"prose": 0.5, "code": 0.5},)) -> Any:
        """base + Σ w (expert - base): weights for each group of layers, or for the whole model."""
        model = copy.deepcopy(self.base)
        experts = {name: dict(expert.named_parameters()) for name, expert in self.experts.items()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                layer = int(name.split(".")[2]) + 1 if ".layers." in name else 0
                start = parameter.clone()
                for expert, weight in weights[layer % len(weights)].items():
                    parameter.add_(experts[expert][name] - start, alpha=weight)
        return model


def family(seed: int, folder: Path, steps: int = 1000, expert_steps: int = 250) -> Family:
    """The base and the experts of a seed. On one thread the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base: Any = operators_context.untrained(LENGTH)
    _learn(base, DOMAINS, loop.Course(steps, 4e-3, warmup=0.05), 12, seed)
    experts = {name: copy.deepcopy(base) for name in TAUGHT}
    for name, expert in experts.items():
        _learn(expert, (name,), loop.Course(expert_steps, 2e-3), 8, seed)
        texts = (bytes(row.ids).decode() for row in rows(name, "healing", HEALED))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Family(base, experts, folder, seed)


def _learn(model: Any, domains: Sequence[str], course: loop.Course, batch: int, seed: int) -> None:
    """Trains all weights on the domains' training parts, as many rows of each."""
    sources = {name: rows(name, "training") for name in domains}
    orders = {name: corpus.endless(len(found), seed, "base", *domains, name) for name, found in sources.items()}
    parameters = list(model.parameters())

    def supply(step: int) -> Mapping[str, Sequence[Sample]]:
        return {
            name: [
                Sample(sources[name][at], name, at) for at in itertools.islice(orders[name], batch // len(domains))
            ]
            for name in domains
        }

    with forward.training(model, parameters, LENGTH, checkpointing=False):
        loop.train(parameters, lambda samples: _entropy(model, samples), supply, replace(course, batch_tokens=4096))


def _entropy(model: Any, samples: Sequence[Sample]) -> torch.Tensor:
    logits, labels = forward.logits(model, [sample.row for sample in samples])
    return losses.mixed(logits, labels, None, 1.0)


# --- what is compared ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """Held-out log-loss, nats per byte, by domain; `step`: the median of the CPU milliseconds of a training
    step, nan where nothing is trained."""

    prose: float
    code: float
    names: float
    step: float = math.nan

    @property
    def mean(self) -> float:
        """Of the two domains that have experts."""
        return (self.prose + self.code) / 2


_BY_DOMAIN = {name: name for name in TAUGHT}
_LIVE = {"teachers": _BY_DOMAIN, "targets": "live"}


def _options(method: str, **options: Any) -> dict[str, Any]:
    hard = options.get("loss", {}).get("hard") == 1.0
    return {"method": method, "lr": RATES[method, "hard" if hard else "soft"], **options}


VARIANTS: dict[str, dict[str, Any]] = {
    "hard labels": _options("full", loss={"hard": 1.0}),
    "hard labels, lora": _options("lora", loss={"hard": 1.0}),
    "forward KL, live": _options("full", **_LIVE),
    "forward KL, top 8": _options("full", teachers=_BY_DOMAIN, targets=TOP_K),
    "forward KL, top 64": _options("full", teachers=_BY_DOMAIN),  # as many as the operator keeps if nothing is said
    "forward KL, lora, live": _options("lora", **_LIVE),
    "forward KL, lora, top 8": _options("lora", teachers=_BY_DOMAIN, targets=TOP_K),
    "reverse KL, live": _options("full", loss={"kind": "reverse_kl"}, **_LIVE),
    "JSD, live": _options("full", loss={"kind": "jsd"}, **_LIVE),
    "forward KL, T=2, live": _options("full", loss={"temperature": 2.0}, **_LIVE),
    "half hard, live": _options("full", loss={"hard": 0.5}, **_LIVE),
    "prose teaches both": _options("full", teachers=dict.fromkeys(TAUGHT, "prose"), targets="live"),
    "code teaches both": _options("full", teachers=dict.fromkeys(TAUGHT, "code"), targets="live"),
}


@torch.no_grad()
def read(model: Any) -> Reading:
    """Held-out log-loss."""
    found = {}
    for name in DOMAINS:
        samples = [Sample(row, name, number) for number, row in enumerate(rows(name, "held", ASKED))]
        found[name] = loop.mean_loss(lambda chosen: _entropy(model, chosen), {name: samples}, 4096)
    return Reading(**found)


def healed(family: Family, model: Any, options: Mapping[str, Any], name: str, steps: int = STEPS) -> Reading:
    """Heals a model in place by the operator, and reads it.

    Args:
        name: of the file that is kept.
    """
    ticks = [time.process_time()]
    context = Context(
        seed=family.seed,
        tokenizer=Bytes(),
        folder=family.folder / "answers",
        kept=family.folder / f"{name}.safetensors",
        parent=family.parent,
        identity={"base": f"{family.seed}-base", **{name: f"{family.seed}-{name}" for name in TAUGHT}},
        report=lambda step, measured: ticks.append(time.process_time()),
    )
    data = {name: str(family.folder / f"{name}.jsonl") for name in TAUGHT}
    given = {"data": data, "length": LENGTH, "batch": BATCH, "steps": steps, **options}
    distillation.apply(model, distillation.Options.model_validate(given), context)
    between = [1000 * (later - sooner) for sooner, later in itertools.pairwise(ticks[1:])]
    return replace(read(model), step=statistics.median(between))


def compared(family: Family, steps: int = STEPS) -> dict[str, Reading]:
    """The models as they are, the merge healed in all ways, and the best parent healed like it."""
    merge = family.merged()
    found = {"base": read(family.base)}
    found |= {f"expert {name}": read(expert) for name, expert in family.experts.items()}
    found["merge"] = read(merge)
    for name, options in VARIANTS.items():
        found[name] = healed(family, copy.deepcopy(merge), options, name, steps)
    best = min(("base", *TAUGHT), key=lambda name: found[name if name == "base" else f"expert {name}"].mean)
    found["best parent, healed"] = healed(
        family, family.parent(best), VARIANTS["forward KL, live"], "parent", steps
    )
    found["best parent, hard labels"] = healed(
        family, family.parent(best), VARIANTS["hard labels"], "parent-hard", steps
    )
    return found


# --- whether the best before healing are the best after it ------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """Mean log-loss of random recipes before and after healing."""

    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    @property
    def spearman(self) -> float:
        ranks = [np.argsort(np.argsort(values)) for values in (self.before, self.after)]
        return float(np.corrcoef(*ranks)[0, 1])

    def regret(self, share: float) -> float:
        """What is lost where only the best are healed, as a part of what lies between the median and the best."""
        chosen = np.argsort(self.before)[: math.ceil(share * len(self.before))]
        best = min(self.after)
        return float((min(self.after[at] for at in chosen) - best) / (np.median(self.after) - best))


def ranked(family: Family, recipes: int = RECIPES) -> Ranks:
    """Random recipes, a weight in [0, 1] for each expert and group of layers, before and after healing."""
    rng, found = random.Random(f"recipes/{family.seed}"), Ranks()
    for number in range(recipes):
        model = family.merged([{name: rng.random() for name in TAUGHT} for _ in range(GROUPS)])
        found.before.append(read(model).mean)
        found.after.append(healed(family, model, VARIANTS["forward KL, top 8"], f"recipe-{number}").mean)
    return found
