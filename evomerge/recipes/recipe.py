"""A recipe says everything needed to build one merged model. Its sha256 is the candidate's name.

A recipe file may be written by hand; parameters may then be short:

```yaml
method: dare_ties
base: models/base
experts: {maths: models/maths, code: models/code@v2}
dtype: bfloat16
seed: 0
parameters:
  weight: {maths: 0.6, code: {attention: 0.3, "*": 0.5}}
  density: 0.7
  lambda: [1.0, 1.0, 0.9, 0.9]     # one number for each layer
options: {rescale: true}
```

A parameter is a number, a list with one number for each layer, or a mapping from experts, module groups or tensor
patterns (`*q_proj*`; the first that matches wins, then the module group, then `*` for all else) to such values.
`method` may be a mapping from module groups or patterns to methods in the same way.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from evomerge import plugins
from evomerge.errors import CandidateError
from evomerge.files.hashing import digest_of_json
from evomerge.files.schema import Strict
from evomerge.models.source import Dtype, Source, SourceField, Vocabulary
from evomerge.models.tensor_names import Place, is_pattern, key_of
from evomerge.recipes.canonical import ANY, Table, at_place, normalized

# Whether recipes are built by fused, compiled passes. It changes the speed and no bit, and is in no recipe.
Compile = Literal["auto", "always", "never"]

# The fields in which all recipes of a study agree.
COMMON_KEYS = {"base", "experts", "dtype", "layers", "seed", "vocabulary"}


class Corpus(Strict):
    """A file of texts to train on.

    Attributes:
        path: where the file lies.
        sha256: the hash of the file's bytes; None if it is not known yet.
    """

    path: str
    sha256: str | None = None


CorpusField = Annotated[Corpus, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)]


class OperatorStep(Strict):
    """A mutation operator with its options, as applied to this candidate.

    Attributes:
        options: every option. The recipe's hash takes a file to train on by its content, as it takes checkpoints.
        delta: the sha256 of the file that a training operator left, see `operators`. Without it the recipe says how
            the candidate is trained. With it the recipe says what the training changed, bit for bit.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    delta: str | None = None


class Recipe(Strict):
    """Everything needed to build a candidate. Equal content gives an equal `sha256`.

    Attributes:
        method: a method, or methods by module group or tensor pattern, with ANY for all other tensors.
        layers: the base's number of layers.
        seed: decides the masks of methods that drop elements.
        options: method -> all its options.
        parameters: parameter -> its table. The rows of tensor patterns stand first, in the order in which they are
            tried, then those of module groups, then ANY.
        vocabulary: what to do where an expert's vocabulary differs, see `models.vocabulary`. None refuses it.
        operators: the operators that act after the merge, in their order.
    """

    method: str | dict[str, str]
    base: SourceField
    experts: dict[str, SourceField]
    dtype: Dtype
    layers: int = Field(ge=1)
    seed: int = 0
    vocabulary: Vocabulary | None = None
    options: dict[str, dict[str, bool]] = Field(default_factory=dict)
    parameters: dict[str, Table]
    operators: tuple[OperatorStep, ...] = ()

    @field_validator("experts")
    @classmethod
    def _sorted_experts(cls, experts: dict[str, Source]) -> dict[str, Source]:
        # Sums run in this order, so that the order in a file changes no bit.
        return dict(sorted(experts.items()))

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("method"), str | Mapping):
            return data
        return normalized(dict(data))

    @property
    def methods(self) -> list[str]:
        """The methods that the recipe uses, each once."""
        return [self.method] if isinstance(self.method, str) else sorted(set(self.method.values()))

    @cached_property
    def sha256(self) -> str:
        """The hash of the recipe's canonical JSON. Checkpoints and texts count by content, not by path."""
        content = self.model_dump(mode="json", exclude_none=True)
        content["base"] = self.base.identity()
        content["experts"] = {name: source.identity() for name, source in self.experts.items()}
        # As lists, because the order of patterns decides which one is tried first.
        content["parameters"] = {name: list(table.items()) for name, table in self.parameters.items()}
        if isinstance(self.method, dict):
            content["method"] = list(self.method.items())
        content["operators"] = _by_content(content["operators"])
        return digest_of_json(content, separators=(",", ":"), allow_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Recipe:
        """A copy as pydantic makes it, but without the original's hash, which pydantic would copy along."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("sha256", None)
        return copied

    def method_at(self, place: Place) -> str:
        """The method that merges a tensor at `place`."""
        if isinstance(self.method, str):
            return self.method
        return self.method[key_of(self.method, place) or ANY]

    def coefficients(self, place: Place) -> dict[str, tuple[float, ...]]:
        """Parameter -> its values for a tensor at `place`: (K,), one for each expert, or (1,), one for all."""
        values = {}
        for parameter in plugins.load("methods", self.method_at(place)).PARAMETERS:
            table = self.parameters[parameter.name]
            row = table[ANY] if len(table) == 1 else table[key_of(table, place) or ANY]
            keys = self.experts if parameter.per_expert else ("",)
            values[parameter.name] = tuple(at_place(row[key], place.layer) for key in keys)
        return values


def _by_content(options: Any) -> Any:
    """An operator's options in which each `Corpus` with a known hash is replaced by that hash."""
    if isinstance(options, Mapping):
        if options.keys() == {"path", "sha256"} and options["sha256"]:
            return options["sha256"]
        return {key: _by_content(value) for key, value in options.items()}
    if isinstance(options, list):
        return [_by_content(value) for value in options]
    return options


def pattern_faults(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """The faults of patterns in a recipe that match no parameter of the live model, one a line.

    Args:
        names: the live model's parameters.
    """
    names = list(names)
    tables: dict[str, Iterable[str]] = {f"parameters.{name}": table for name, table in recipe.parameters.items()}
    if isinstance(recipe.method, dict):
        tables["method"] = recipe.method
    return [
        f"{where}.{key}: matches no tensor of the model, whose parameters are called like {names[len(names) // 2]}"
        for where, table in tables.items()
        for key in table
        if is_pattern(key) and not fnmatch.filter(names, key)
    ]


def parent_recipe(recipe: Recipe, name: str) -> Recipe:
    """The recipe that builds one of the models that another recipe merges, without operators.

    Args:
        name: an expert's name, or `base`.

    Raises:
        CandidateError: the recipe merges no such model.
    """
    models = ["base", *recipe.experts]
    if name not in models:
        raise CandidateError(f"the recipe merges no model {name!r}; there are {', '.join(models)}")
    if name == "base":
        merge: dict[str, Any] = {"method": "task_arithmetic", "parameters": {"weight": 0.0}}
    else:
        weights = {expert: float(expert == name) for expert in recipe.experts}
        merge = {"method": "linear", "parameters": {"weight": weights}}
    return Recipe.model_validate({**{key: getattr(recipe, key) for key in COMMON_KEYS}, **merge})
