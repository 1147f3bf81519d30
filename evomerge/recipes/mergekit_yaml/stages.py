"""Files of mergekit-multi: several merges, parted by `---`, of which some merge what others make.

```yaml
name: halves
merge_method: linear
models:
  - {model: org/maths, parameters: {weight: 1}}
  - {model: org/code, parameters: {weight: 1}}
---
merge_method: slerp
base_model: org/base
models: [{model: halves}]
parameters: {t: 0.4}
```
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError
from evomerge.recipes.mergekit_yaml.reading import is_one, other_tool, read

_MODEL_KEYS = ("model", "base_model", "tokenizer_source", "source")  # whose value is a model
_WORDS = ("base", "union")  # what may stand in the place of a tokenizer's model


@dataclass(frozen=True)
class Stage:
    """One merge of several.

    Attributes:
        where: the file and the document in it, for errors.
        name: what others call the result; empty for a document without a name.
        data: the document without its name.
        needs: the names of the merges whose results this one merges.
    """

    where: str
    name: str
    data: Mapping[str, Any]
    needs: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return re.sub(r"[^\w.-]+", "-", self.name).strip("-.") or "merge"


def stages(where: str, documents: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """The merges of a file in an order in which each comes after those that it needs.

    Args:
        where: the file, for errors.

    Raises:
        ConfigError: with every fault of all documents; or merges need each other in a circle, or there are results
            that nothing tells apart.
    """
    names = [str(data.get("name") or "") for data in documents]
    made = []
    errors = []
    for place, (name, data) in enumerate(zip(names, documents, strict=True)):
        here = f"{where}, document {place + 1}" + (f" ({name})" if name else "")
        own = {key: value for key, value in data.items() if key != "name"}
        needs = dict.fromkeys(model for model in _models(own) if model in names)
        made.append(Stage(here, name, own, tuple(needs)))
        try:
            _check(made[-1])
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise ConfigError.join(errors)
    ordered = _ordered(where, made)
    if faults := _name_faults(made):
        raise ConfigError(where, faults)
    return ordered


def _check(stage: Stage) -> None:
    """Raises a ConfigError with the faults of one document."""
    if reason := other_tool(stage.data):
        raise ConfigError(stage.where, [reason])
    if not is_one(stage.data):
        raise ConfigError(stage.where, ["merge_method: is missing; each of several documents is a mergekit merge"])
    read(stage.where, stage.data)


def _ordered(where: str, made: Sequence[Stage]) -> list[Stage]:
    """The merges, each after those that it needs; otherwise as they stand."""
    ordered: list[Stage] = []
    waiting = list(made)
    while waiting:
        there = {stage.name for stage in ordered}
        ready = next((stage for stage in waiting if there.issuperset(stage.needs)), None)
        if ready is None:
            circle = ", ".join(stage.name or "the unnamed one" for stage in waiting)
            raise ConfigError(
                where, [f"name: the merges {circle} need each other's results; one has to come first"]
            )
        ordered.append(ready)
        waiting.remove(ready)
    return ordered


def _name_faults(made: Sequence[Stage]) -> list[str]:
    folders = [stage.folder for stage in made if stage.name]
    if twice := sorted({name for name in folders if folders.count(name) > 1}):
        return [f"name: {name} stands over two documents" for name in twice]
    if len(results(made)) > 1 and any(not stage.name for stage in made):
        return ["name: is missing in a document; where no other merges its result, each of several needs a name"]
    return []


def results(made: Sequence[Stage]) -> list[Stage]:
    """The merges whose results no other merges."""
    needed = {name for stage in made for name in stage.needs}
    return [stage for stage in made if stage.name not in needed]


def leading_to(stage: Stage, made: Sequence[Stage]) -> list[Stage]:
    """A merge and all that it needs, in building order."""
    needed = {stage.name}
    for one in reversed(made):
        if one.name in needed:
            needed.update(one.needs)
    return [one for one in made if one.name in needed]


def with_models(data: Mapping[str, Any], replaced: Callable[[Any], Any]) -> dict[str, Any]:
    """A document whose models are replaced.

    Args:
        replaced: a model as it stands in the file, a text or a mapping with its `path` -> what stands there
            instead: the same, a text, or a mapping with `model`.
    """
    new: dict[str, Any] = {}
    for key, value in data.items():
        if key in _MODEL_KEYS and value not in (None, *_WORDS):
            around = value if isinstance(value, Mapping) and "model" in value else None
            new[key] = replaced(around["model"] if around else value)
            if around:
                inner = new[key]
                new[key] = {**around, "model": inner.get("model", inner) if isinstance(inner, Mapping) else inner}
        elif isinstance(value, Mapping):
            new[key] = with_models(value, replaced)
        elif isinstance(value, list):
            new[key] = [with_models(one, replaced) if isinstance(one, Mapping) else one for one in value]
        else:
            new[key] = value
    return new


def _models(data: Mapping[str, Any]) -> list[str]:
    """The names of all models in a document."""
    models: list[str] = []

    def note(value: Any) -> Any:
        models.append(name_of(value))
        return value

    with_models(data, note)
    return models


def name_of(value: Any) -> str:
    """The path of a model as it stands in the file."""
    return str(value.get("path", "")) if isinstance(value, Mapping) else str(value)
