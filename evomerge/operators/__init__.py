"""Mutation operators, one a file: what acts on the live model after the merge and before the scoring.

A new file here is a new operator. There are two kinds. A pure one takes milliseconds, uses no data, and is undone
exactly: it acts on every candidate, and its options may be genes. A training one changes the weights by gradient
steps: it acts on elites only, in a second phase of the search, and leaves a file of what it changed.

Its module holds:

- a docstring: what it does and the paper it comes from;
- `TOUCHES`: what it changes, of "rope", "config", "scale" (the weights that an attention scale is folded into) and
  "weights"; nothing else changes;
- `TRAINING`: whether it is of the second kind;
- `Options`: a pydantic model of its options, a `recipe.Strict`; files are `recipe.Corpus`;
- `check(options, config) -> list[str]`: what is wrong with using it on a model of that transformers config, one
  fault a line with the option's name in front (`factor: ...`); [] if nothing is;
- `reach(options, config) -> int | None`: the longest text, in tokens, that the model is meant for afterwards; None
  leaves it as it was;
- `estimate(options, parameters) -> Cost`: what it will take on a model of so many parameters, roughly;
- `apply(model, options, context) -> Applied`: changes the live transformers model. Equal model, options and seed
  give equal bits, on one kind of device with one number of threads. A training operator that finds `context.kept`
  does not train again: what the live model holds in the end always comes from that file.

`apply` raises CandidateError where it cannot work on this candidate: a loss that is not finite, say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from evomerge.errors import CandidateError


@dataclass(frozen=True)
class Cost:
    """What an operator takes, expected or measured.

    Attributes:
        steps, tokens: of training; tokens that a student was trained on.
        seconds: in all.
        peak_bytes: of memory beside the live model. disk_bytes: of what it leaves.
    """

    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    peak_bytes: int = 0
    disk_bytes: int = 0


Watch = Callable[[int, Mapping[str, float]], None]


def unwatched(step: int, measured: Mapping[str, float]) -> None:
    """In the place of `Context.report` where nobody watches."""


def no_parent(name: str) -> nn.Module:
    """In the place of `Context.parent` where there are no parents."""
    raise CandidateError(f"there is no model {name!r} here to learn from")


@dataclass(frozen=True)
class Context:
    """What an operator may use besides the model.

    Attributes:
        seed: of all randomness; a function of the recipe.
        tokenizer: the model's.
        folder: where files are kept that later candidates may use again, such as teachers' answers.
        kept: the file that a training operator leaves, a safetensors file; it may exist already.
        parent: name of an expert, or "base" -> that model, on the live model's device, as it is before any
            operator: a copy of its own in evaluation mode, without gradients. Dear in memory: let it go soon.
        identity: name of an expert, or "base" -> the sha256 of its weights.
        report: is told of progress, (step, measurements).
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
    """What became of the model.

    Attributes:
        undo: puts back exactly what a pure operator changed; of a training operator all but the weights, which the
            next merge overwrites.
        record: what is known of it, for the study: JSON's types only. That of a training operator has the `sha256`
            of the tensors in its file: equal where training came to the same.
        cost: as measured; of a training operator that found its file, what training took then.
    """

    undo: Callable[[], None]
    record: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = Cost()
