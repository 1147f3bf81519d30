"""Mutation operators, one a file: each acts on the live model after the merge and before the scoring.

A new file here is a new operator. There are two kinds. A pure operator takes milliseconds, uses no data, and is
undone exactly: it acts on every candidate, and its options may be genes. A training operator changes the weights by
gradient steps: it acts on elites only, in a second phase of the search, and leaves a file of what it changed.

An operator's module holds:

- a docstring: what it does and the paper it comes from;
- `TRAINING`: whether it is a training operator;
- `Options`: a pydantic model of its options, a `files.schema.Strict` whose docstring says what each option means.
  Files that it trains on are `recipes.recipe.Corpus`;
- `check(options, config) -> list[str]`: what is wrong with using it on a model of that transformers config, one
  fault a line with the option's name in front (`factor: ...`); [] if nothing is wrong;
- `reach(options, config) -> int | None`: the longest text, in tokens, that the model is meant for afterwards; None
  if the operator does not change that length;
- `estimate(options, parameters) -> Cost`: a rough forecast of what it takes on a model of so many parameters;
- `teachers(options) -> set[str]`: the models that it learns from, names of experts or "base". Empty for a pure
  operator;
- `corpora(options) -> dict[str, Corpus]`: the files that it trains on, by the names that its options give them.
  Empty for a pure operator;
- `apply(model, options, context) -> Applied`: changes the live transformers model. Equal model, options and seed
  give equal bits, on one kind of device with one number of threads. A training operator that finds `context.kept`
  does not train again: what the live model holds in the end always comes from that file.

`apply` raises CandidateError where it cannot work on this candidate: a loss that is not finite, say.

A module imports torch and transformers only inside the functions that need them, for what only reads an experiment
(`evomerge status`) loads the modules of its operators too. `OperatorModule` is this contract as a type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from evomerge import plugins
from evomerge.errors import CandidateError
from evomerge.files.schema import Strict
from evomerge.recipes.recipe import Corpus

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Cost:
    """What an operator takes, expected or measured.

    Attributes:
        seconds: wall-clock time in all.
        steps: steps of training.
        tokens: tokens that the student is trained on.
        peak_bytes: memory beside the live model.
        disk_bytes: size of the files that it leaves.
    """

    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    peak_bytes: int = 0
    disk_bytes: int = 0


# Is told of progress: the number of steps done, and what was measured in the last one.
Watch = Callable[[int, Mapping[str, float]], None]


def unwatched(step: int, measured: Mapping[str, float]) -> None:
    """A `Watch` that drops what it is told: the default where nobody watches."""


def no_parent(name: str) -> nn.Module:
    """A `Context.parent` that refuses every name: the default where there are no parents."""
    raise CandidateError(f"there is no model {name!r} here to learn from")


@dataclass(frozen=True)
class Context:
    """What an operator may use besides the model.

    Attributes:
        seed: the seed of all its randomness; a function of the recipe.
        tokenizer: the model's tokenizer.
        folder: where files are kept that later candidates may use again, such as teachers' answers.
        kept: the path of the file that a training operator leaves, a safetensors file; it may exist already.
        parent: gives the model of that name (an expert, or "base") as it is before any operator: a copy of its own
            on the live model's device, in evaluation mode, without gradients. It takes much memory: let it go soon.
        identity: name of an expert, or "base" -> the sha256 of its weights.
        report: is told of progress.
    """

    seed: int
    tokenizer: Any
    folder: Path
    kept: Path
    parent: Callable[[str], nn.Module] = no_parent
    identity: Mapping[str, str] = field(default_factory=dict)
    report: Watch = unwatched


@dataclass(frozen=True)
class Applied:
    """What an operator did to the model.

    Attributes:
        undo: puts back exactly what a pure operator changed. A training operator's puts back all but the weights,
            which the next merge overwrites.
        record: what the study notes of it, in JSON's types only. A training operator's has the `sha256` of the
            tensors in its file: equal where two trainings gave equal tensors.
        cost: the measured cost. Where a training operator found its file, the cost of the training that made it.
    """

    undo: Callable[[], None]
    record: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = Cost()


class OperatorModule(Protocol):
    """The module of an operator. This folder's docstring says what each of its names means."""

    TRAINING: bool

    @property
    def Options(self) -> type[Strict]:  # noqa: N802
        """The model of the operator's options."""

    def check(self, options: Any, config: Any) -> list[str]:
        """What is wrong with using it on a model of that config."""

    def reach(self, options: Any, config: Any) -> int | None:
        """The longest text that the model is meant for afterwards."""

    def estimate(self, options: Any, parameters: int) -> Cost:
        """What it takes on a model of so many parameters."""

    def teachers(self, options: Any) -> set[str]:
        """The models that it learns from."""

    def corpora(self, options: Any) -> dict[str, Corpus]:
        """The files that it trains on."""

    def apply(self, model: Any, options: Any, context: Context) -> Applied:
        """Changes the live model."""


def load(name: str) -> OperatorModule:
    """The module of the operator of that name.

    Raises:
        ConfigError: there is no such operator; the message lists those there are.
    """
    return cast(OperatorModule, plugins.load("operators", name))
