"""The keys of a mergekit file. A key that a recipe has no word for is refused here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from evomerge.errors import suggest
from evomerge.files import schema
from evomerge.files.schema import Strict
from evomerge.models.source import Dtype, Source
from evomerge.recipes.mergekit_yaml.dialects import SUPPORTED
from evomerge.recipes.mergekit_yaml.passed_over import PARAMETERS


def _refused(why: str) -> BeforeValidator:
    """A validator that refuses any value but null and empty ones.

    Args:
        why: the fault's text.
    """

    def validate(value: Any) -> None:
        if value not in (None, {}, []):
            raise ValueError(why)

    return BeforeValidator(validate)


def model_of(value: Any) -> Source:
    """The source in `path`, `path@revision`, or mergekit's mapping `{model: {path, revision}}`."""
    lora, path = None, value
    if isinstance(value, Source):
        return value
    if isinstance(value, Mapping):
        unknown = [str(key) for key in value if key not in ("model", "lora", "override_architecture")]
        if unknown or "model" not in value:
            raise ValueError("must be a path, or a mapping with `model`: {path: ..., revision: ...}")
        if value.get("override_architecture") is not None:
            raise ValueError("override_architecture cannot be given; evomerge takes what config.json says")
        lora, path = value.get("lora"), value["model"]
    elif isinstance(value, str):
        path, _, lora = value.partition("+")
    if lora:
        raise ValueError(
            f"names an adapter ({lora}) on a model; if the model is the base, give the adapter's folder alone, "
            "else merge the adapter into its model first"
        )
    return _path(path)


def _path(value: Any) -> Source:
    """The source in `path`, `path@revision` or `{path, revision}`."""
    if isinstance(value, Mapping) and set(value) <= {"path", "revision"}:
        path, revision = value.get("path"), value.get("revision")
        if isinstance(path, str) and isinstance(revision, str | None):
            return Source(model=path, revision=revision)
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a model's path, but is {value!r}")
    model, at, revision = value.partition("@")
    if "@" in revision or (at and not (model and revision)):
        raise ValueError(f"must be `path` or `path@revision`, but is {value!r}")
    return Source(model=model, revision=revision or None)


def _dtype(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


def _chat_template(value: Any) -> None:
    if value not in (None, "", "auto"):
        raise ValueError("evomerge keeps the base's chat template; remove the key, and set the template afterwards")


ModelField = Annotated[Source, BeforeValidator(model_of)]
DtypeField = Annotated[Dtype | None, BeforeValidator(_dtype)]

TokenizerField = Annotated[
    Any, BeforeValidator(lambda value: value if value in (None, "base", "union") else model_of(value))
]


class Level(Strict):
    """The keys that the file, its slices and its models have in common."""

    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("parameters", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return {} if value is None else value


class ModelEntry(Level):
    """A model in `models` or in a slice's `sources`."""

    model: ModelField
    layer_range: tuple[int, int] | None = None


class Slice(Level):
    """Layers of all models, which are merged with each other."""

    sources: list[ModelEntry] = Field(min_length=1)
    base_model: ModelField | None = None
    residual_weight: Annotated[None, _refused("evomerge has no such thing; remove it")] = None


class Tokenizer(Strict):
    """The key `tokenizer`."""

    source: TokenizerField = "union"
    tokens: Annotated[None, _refused("evomerge has no rules for single tokens; remove it")] = None
    pad_to_multiple_of: Annotated[None, _refused("evomerge does not pad vocabularies; remove it")] = None


class Content(Level):
    """What is merged: a module of a model, or a file that has no modules."""

    models: list[ModelEntry] | None = None
    slices: list[Slice] | None = None


def _one_module(value: Any) -> Any:
    """The modules of a file, of which there may be one, called `default`."""
    if not value:
        return None
    if isinstance(value, Mapping) and (others := [str(name) for name in value if name != _MODULE]):
        raise ValueError(
            f"names {', '.join(others)}; evomerge merges whole language models, whose one module is {_MODULE!r}"
        )
    return value


_MODULE = "default"  # mergekit's name of the module that is a whole language model


class File(Content):
    """A whole mergekit configuration."""

    merge_method: str
    modules: Annotated[dict[str, Content] | None, BeforeValidator(_one_module)] = None
    merges: Annotated[None, _refused("evomerge makes one model of one file")] = None
    base_model: ModelField | None = None
    dtype: DtypeField = None
    out_dtype: DtypeField = None
    tokenizer_source: TokenizerField = None
    tokenizer: Tokenizer | None = None
    chat_template: Annotated[None, BeforeValidator(_chat_template)] = None
    random_seed: Annotated[int, Field(ge=0)] | None = None
    name: Any = None

    @property
    def content(self) -> tuple[str, Content]:
        """The models or slices, and the path in the file of what holds them, with a dot at its end."""
        return (f"modules.{_MODULE}.", self.modules[_MODULE]) if self.modules else ("", self)

    @field_validator("merge_method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SUPPORTED:
            raise ValueError(f"evomerge has no method {name!r}.{suggest(name, SUPPORTED)}")
        return name


def faults_of(error: ValidationError) -> list[str]:
    """A pydantic error as lines whose paths are written as mergekit's users write them: `models[0].parameters`."""
    faults = []
    for line in schema.faults_of(error):
        path, colon, text = line.partition(": ")
        if text.startswith("is no key here") and path.rpartition(".")[2] in PARAMETERS:
            text = "is no key here, and mergekit passes it over; move it into `parameters`, or remove it"
        faults.append(re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path) + colon + text)
    return faults
