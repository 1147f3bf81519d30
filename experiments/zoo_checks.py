"""What has to hold of an architecture.

a. Weight 1 of one expert gives that expert's file, tensor for tensor and bit for bit.
b. A merge by each method is finite.
c. The exported folder loads, and has the live model's logits to the bit.
d. Names, shapes and dtypes of the exported tensors, the config's class and `architectures` are the base's.
e. Log-likelihoods are those of stock lm-eval on the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
import zoo_models
import zoo_rows
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig
from zoo_models import EXPERTS, Architecture
from zoo_rows import Row, told

from evomerge import plugins
from evomerge.errors import CheckpointError, ConfigError
from evomerge.merging import methods
from evomerge.models.loading import align
from evomerge.models.source import Source
from evomerge.models.survey import survey_models
from evomerge.recipes.recipe import Recipe
from evomerge.results.exporting.folder import export_recipe
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.candidates.workbench import Workbench

_VALUES = {
    "weight": 0.6,
    "density": 0.5,
    "t": 0.4,
    "gamma": 0.1,
    "epsilon": 0.1,
}  # of parameters without a default
_ONE: dict[str, Any] = {"method": "linear", "parameters": {"weight": {"ant": 1.0, "bee": 0.0}}}
_TWO: dict[str, Any] = {"method": "task_arithmetic", "parameters": {"weight": {"ant": 0.6, "bee": 0.4}}}
_TOLERANCE = 1e-4  # of a log-likelihood
_CLEAR = 600  # characters of the longest message that a person reads

_TASK = """
task: letters
custom_dataset: !function letters.documents
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
_DOCUMENTS = """
import random

import datasets


def documents(**keywords):
    draw, letters = random.Random(1), "abcdefghij"
    common, rows = "".join(draw.choices(letters, k=6)), []
    for length in (1, 3, 5, 8, 12, 15):
        prompt = common + "".join(draw.choices(letters, k=length)) + "="
        choices = ["".join(draw.choices(letters, k=2)) for _ in range(3)]
        rows.append({"prompt": prompt, "choices": choices, "gold": draw.randrange(3)})
    return {"test": datasets.Dataset.from_list(rows)}
"""


def check(one: Architecture, home: Path) -> Row:
    """Builds an architecture in a folder and checks it."""
    start = time.perf_counter()
    row = zoo_rows.build(one, home)
    if row.result != "unbuilt":
        _Inspection(one, home, row).run()
    row.seconds = time.perf_counter() - start
    return row


class _Inspection:
    """The checks of one architecture, whose models lie in `home`."""

    def __init__(self, one: Architecture, home: Path, row: Row) -> None:
        self.one, self.home, self.row = one, home, row
        self._refused = False

    def run(self) -> None:
        """Runs the checks. Where the models are refused as such, those that come after are left out."""
        self._check("a", self._one_expert)
        if not self._refused and (bench := self._check("b", self._open)):
            self._check("b", partial(self._finite, bench))
            out = self._check("d", self._exported)
            if out is not None and not self.row.notes:  # else it has no logits without an image
                self._check("c", partial(self._logits, bench, out))
            self._check("e", partial(self._likelihoods, bench))
        self.row.problems = _joined(self.row.problems)
        if wrong := [line for line in self.row.problems if not line.startswith("refused ")]:
            self.row.result, self.row.problems = "wrong", wrong
        else:
            self.row.result = "refused" if self.row.problems else "whole"

    def _check(self, letter: str, test: Callable[[], Any]) -> Any:
        """Runs a check, and notes in the row what it raises. Returns what the check returns."""
        try:
            return test()
        except (CheckpointError, ConfigError) as error:
            text = str(error).replace(f"{self.home}/", "")
            if "\n" in text or len(text) > _CLEAR:
                self.row.problems.append(f"{letter}: no clear line: {' '.join(text.split())[:200]}")
            else:
                self._refused = True
                self.row.problems.append(f"refused {letter}: {text}")
        except _WrongError as error:
            self.row.problems.append(f"{letter}: {error}")
        except Exception as error:
            self.row.problems.append(f"{letter}: {told(error)}".replace(f"{self.home}/", ""))
        return None

    def _write(self, name: str, **keys: Any) -> Path:
        """A recipe file."""
        path = self.home / f"{name}.yaml"
        keys |= {"base": "base", "experts": {expert: expert for expert in EXPERTS}}
        path.write_text(yaml.safe_dump(keys))
        return path

    def _one_expert(self) -> None:
        out = export_recipe(self._write("one", **_ONE), self.home / "one", _silent)
        wanted, found = map(zoo_models.tensors_of, (self.home / "ant", out))
        faults = _names_apart(wanted, found)
        common = [name for name in wanted if name in found]
        if wrong := [name for name in common if not torch.equal(wanted[name], found[name])]:
            faults.append(f"{_some(wrong)} are not the expert's")
        if faults:
            raise _WrongError(f"of {len(wanted)} tensors {', '.join(faults)}")

    def _open(self) -> Workbench:
        sources = {name: Source(model=str(self.home / name)) for name in ("base", *EXPERTS)}
        survey = survey_models(sources.pop("base"), sources, "auto", _silent)
        return Workbench(Setup(survey.base, survey.experts, survey.dtype, str(self.home / "cache")))

    def _finite(self, bench: Workbench) -> None:
        broken = {}
        for name in plugins.names("methods"):
            method = methods.load(name)
            experts = dict([*bench.setup.experts.items()][: method.EXPERTS[1] or 2])
            values = {p.name: _VALUES[p.name] for p in method.PARAMETERS if p.default is None}
            bench.merger.apply(_recipe(bench, method=name, parameters=values, experts=experts))
            state = bench.model.state_dict() | bench.merger.weights.merged
            if bad := [key for key, tensor in state.items() if not bool(torch.isfinite(tensor).all())]:
                broken[name] = _some(bad)
        if broken:
            raise _WrongError(f"not finite: {broken}")

    def _exported(self) -> Path:
        out = export_recipe(self._write("two", **_TWO), self.home / "two", _silent)
        base, found = map(zoo_models.tensors_of, (self.home / "base", out))
        faults = _names_apart(base, found)
        for what in ("shape", "dtype"):
            common = [name for name in base if name in found]
            if wrong := [name for name in common if getattr(base[name], what) != getattr(found[name], what)]:
                faults.append(f"{_some(wrong)} of another {what}")
        if faults:
            raise _WrongError(f"of {len(base)} tensors {', '.join(faults)}")
        configs = [AutoConfig.from_pretrained(folder) for folder in (self.home / "base", out)]
        for one, other in (map(type, configs), (config.architectures for config in configs)):
            if one != other:
                raise _WrongError(f"the config has {other} and not {one}")
        return out

    def _logits(self, bench: Workbench, out: Path) -> None:
        pair = bench.build(_recipe(bench, **_TWO)).model, self._load(out)
        for parameter in (*pair[0].parameters(), *pair[1].parameters()):
            parameter.data = parameter.data.clone()  # a product's last bits depend on where in memory it is read
        live, loaded = (zoo_models.logits(model, zoo_models.prompt()) for model in pair)
        if not torch.equal(live, loaded):
            raise _WrongError("the loaded model has other logits than the live one")

    def _load(self, folder: Path) -> Any:
        """A folder's model, as transformers loads it in the class of the base."""
        model, info = getattr(transformers, self.one.kind).from_pretrained(folder, output_loading_info=True)
        if lost := info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]:
            raise _WrongError(f"{folder.name} loads without {_some(sorted(map(str, lost)))}")
        align(model)  # as the live model is: products of matrices round by where these lie
        return model.eval()

    def _likelihoods(self, bench: Workbench) -> None:
        (self.home / "letters.py").write_text(_DOCUMENTS)
        (self.home / "letters.yaml").write_text(_TASK)
        bench.merger.apply(_recipe(bench, **_ONE))
        scorer = Scorer(bench.model, bench.tokenizer, [TaskSpec("letters")], include=self.home)
        self.row.shared, self.row.full_forward = scorer.shared, scorer.full_forward
        scorer.score()
        instances = [one for document in scorer.tasks["letters"].documents for one in document.instances]
        ours = [one.resps[0] for one in instances]
        theirs = self._stock(instances, bench.tokenizer)
        apart = max(abs(mine[0] - other[0]) for mine, other in zip(ours, theirs, strict=True))
        if not apart <= _TOLERANCE:
            raise _WrongError(f"log-likelihoods are {apart:.1e} apart from lm-eval's")
        if [mine[1] for mine in ours] != [other[1] for other in theirs]:
            raise _WrongError("greedy answers are not those of lm-eval")

    def _stock(self, instances: list[Instance], tokenizer: Any) -> list[tuple[float, bool]]:
        """The answers of stock lm-eval to some requests, with the weights of the first expert."""
        model = self._load(self.home / EXPERTS[0])
        stock = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
        try:
            return list(stock.loglikelihood(instances, disable_tqdm=True))
        except Exception as error:
            model.config.use_cache = model.config.get_text_config().use_cache = False  # some only run without
            try:
                answers = list(stock.loglikelihood(instances, disable_tqdm=True))
            except Exception:
                raise _WrongError(f"scored, but stock lm-eval cannot: {told(error)}") from error
            self.row.notes.append("stock lm-eval runs it without a cache alone")
            return answers


class _WrongError(Exception):
    """A check that does not hold."""


def _recipe(bench: Workbench, **keys: Any) -> Recipe:
    """The recipe of some keys for the models of a workbench."""
    setup = bench.setup
    common = {"base": setup.base, "experts": setup.experts, "dtype": setup.dtype, "layers": bench.merger.layers}
    return Recipe.model_validate(common | keys)


def _names_apart(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What was lost and what was added between two sets of names, a phrase each."""
    apart = {"lost": sorted(set(wanted) - set(found)), "added": sorted(set(found) - set(wanted))}
    return [f"{_some(names)} {what}" for what, names in apart.items() if names]


def _joined(problems: list[str]) -> list[str]:
    """Problems in which one that several checks meet stands once, with the letters of all of them."""
    letters: dict[str, str] = {}
    for problem in problems:
        letter, text = problem.split(": ", 1)
        letters[text] = letters[text] + letter[-1] if text in letters else letter
    return [f"{letter}: {text}" for text, letter in letters.items()]


def _some(names: list[str]) -> str:
    """How many names there are, and the first of them."""
    return f"{len(names)} ({names[0]}{', ...' if len(names) > 1 else ''})"


def _silent(text: str) -> None:
    """Progress that nobody reads."""
