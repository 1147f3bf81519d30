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
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from evomerge import catalog, plugins
from evomerge.errors import ConfigError, suggest
from evomerge.tensors import MODULES, Place, is_pattern, key_of

ANY = "*"  # all module groups that are not named

Values = float | list[float]
# Canonical form of one parameter: pattern, module group or ANY -> expert, or "" for all experts together -> values.
Table = dict[str, dict[str, Values]]


class Strict(BaseModel):
    """Base of every model that a person's file is read into: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Source(Strict):
    """A checkpoint: where it is found, and what its weights hash to."""

    model: str
    revision: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        return self.model + (f"@{self.revision}" if self.revision else "")

    def identity(self) -> str:
        """What the recipe's hash takes: the content, wherever it lies."""
        return self.sha256 or str(self)


def parse_source(value: Any) -> Any:
    """`model` or `model@revision` as a mapping; anything else as it is."""
    if not isinstance(value, str):
        return value
    model, at, revision = value.rpartition("@")
    if at and "/" not in revision:
        return {"model": model, "revision": revision}
    return {"model": value}


SourceField = Annotated[Source, BeforeValidator(parse_source)]


class Corpus(Strict):
    """A file of texts to train on: where it lies, and the sha256 of its bytes."""

    path: str
    sha256: str | None = None


CorpusField = Annotated[Corpus, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)]
Dtype = Literal["float32", "bfloat16", "float16"]
Vocabulary = Literal["base", "union"]


class OperatorStep(Strict):
    """A mutation operator with its options, as applied to this candidate.

    Attributes:
        options: every option. A file to train on counts by its content, as checkpoints do.
        delta: the sha256 of the file that a training operator left, see `evomerge.operators`. Without it the
            recipe says how the candidate is trained; with it, what came of that, bit for bit.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    delta: str | None = None


class Recipe(Strict):
    """Everything needed to build a candidate. Equal content gives an equal `sha256`.

    Attributes:
        method: a method, or methods by module group or tensor pattern, with ANY for all else.
        options: method -> all its options.
        parameters: parameter -> its table; the rows of tensor patterns stand first, in the order in which they are
            tried, then those of module groups, then ANY.
        vocabulary: what to do where an expert's vocabulary differs: see `evomerge.inputs`.
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
        return _normalized(dict(data))

    @property
    def methods(self) -> list[str]:
        """The methods it uses, each once."""
        return [self.method] if isinstance(self.method, str) else sorted(set(self.method.values()))

    @cached_property
    def sha256(self) -> str:
        """The recipe's hash, over canonical JSON. Checkpoints count by content, not by path."""
        content = self.model_dump(mode="json", exclude_none=True)
        content["base"] = self.base.identity()
        content["experts"] = {name: source.identity() for name, source in self.experts.items()}
        # Lists, for the order of patterns counts.
        content["parameters"] = {name: list(table.items()) for name, table in self.parameters.items()}
        if isinstance(self.method, dict):
            content["method"] = list(self.method.items())
        content["operators"] = _by_content(content["operators"])
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Recipe:
        """As pydantic's, but without the original's hash, which pydantic would copy along."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("sha256", None)
        return copied

    def method_at(self, place: Place) -> str:
        """The method of a tensor at `place`."""
        if isinstance(self.method, str):
            return self.method
        return self.method[key_of(self.method, place) or ANY]

    def coefficients(self, place: Place) -> dict[str, tuple[float, ...]]:
        """Each parameter's values for a tensor at `place`: (K,) if per expert, else (1,)."""
        found = {}
        for parameter in plugins.load("methods", self.method_at(place)).PARAMETERS:
            table = self.parameters[parameter.name]
            row = table[ANY] if len(table) == 1 else table[key_of(table, place) or ANY]
            keys = self.experts if parameter.per_expert else ("",)
            found[parameter.name] = tuple(_at(row[key], place.layer) for key in keys)
        return found


def _at(values: Values, layer: int) -> float:
    return values[layer] if isinstance(values, list) else values


def _by_content(options: Any) -> Any:
    """Options with each `Corpus` in them as the sha256 of its texts, wherever they lie."""
    if isinstance(options, Mapping):
        if options.keys() == {"path", "sha256"} and options["sha256"]:
            return options["sha256"]
        return {key: _by_content(value) for key, value in options.items()}
    if isinstance(options, list):
        return [_by_content(value) for value in options]
    return options


# --- from what people write to the canonical form ----------------------------------------------------------


def _normalized(data: dict[str, Any]) -> dict[str, Any]:
    """The recipe with every option and parameter present, in canonical form.

    Raises:
        ValueError: with all faults of method, options and parameters, one a line.
    """
    method, faults = _methods(data["method"])
    if faults:
        raise ValueError("\n".join(faults))
    names = [method] if isinstance(method, str) else sorted(set(method.values()))
    experts = sorted(data["experts"]) if isinstance(data.get("experts"), Mapping) else []
    for name in names:
        faults += expert_faults(name, len(experts))
    faults += name_faults(experts)
    options, wrong = _options(data.get("options") or {}, names)
    faults += wrong
    tables, wrong = _parameters(data.get("parameters") or {}, names, experts, data.get("layers"))
    faults += wrong
    if faults:
        raise ValueError("\n".join(faults))
    return {**data, "method": method, "options": options, "parameters": tables}


def _methods(given: str | Mapping[str, Any]) -> tuple[str | dict[str, str], list[str]]:
    """The method, or the methods by module group and pattern in canonical order, and the faults."""
    rows = {ANY: given} if isinstance(given, str) else dict(given)
    faults = []
    for key, name in rows.items():
        where = "method" if isinstance(given, str) else f"method.{key}"
        if not (key in (*MODULES, ANY) or is_pattern(str(key))):
            faults.append(f"{where}: is no module group and no tensor pattern.{suggest(str(key), [*MODULES, ANY])}")
        if name not in plugins.names("methods"):
            faults.append(f"{where}: unknown method {name!r}.{suggest(str(name), plugins.names('methods'))}")
    if ANY not in rows:
        faults.append('method: has none for all other tensors; give method."*"')
    if faults:
        return "", faults
    ordered = _ordered(rows)
    if set(ordered.values()) == {ordered[ANY]}:
        return ordered[ANY], []
    rest = ordered[ANY]
    return {key: name for key, name in ordered.items() if key == ANY or is_pattern(key) or name != rest}, []


def pattern_faults(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """The patterns of a recipe that match none of the live model's parameters, one a line."""
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


def _ordered(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Patterns in their order, then module groups in that of MODULES, then ANY."""
    patterns = [key for key in rows if is_pattern(key)]
    return {key: rows[key] for key in (*patterns, *MODULES, ANY) if key in rows}


def _options(given: Any, methods: list[str]) -> tuple[dict[str, dict[str, bool]], list[str]]:
    """All options of each method. `given` is option -> bool for all methods that have it, method -> options, or
    both; what names a method wins."""
    known = {name: dict(plugins.load("methods", name).OPTIONS) for name in methods}
    if not isinstance(given, Mapping):
        return {}, ["options: must be a mapping"]
    faults = []
    everywhere = {key: value for key, value in given.items() if key not in methods}
    for key in everywhere:
        if not any(key in options for options in known.values()):
            names = {option for options in known.values() for option in options}
            faults.append(f"options.{key}: {' and '.join(methods)} has no such key.{suggest(str(key), names)}")
    found = {}
    for name, defaults in known.items():
        own = given.get(name) or {}
        if not isinstance(own, Mapping):
            faults.append(f"options.{name}: must be a mapping of {name}'s options")
            continue
        faults += [
            f"options.{name}.{key}: {name} has no such key.{suggest(str(key), defaults)}"
            for key in own
            if key not in defaults
        ]
        found[name] = {**defaults, **{key: value for key, value in everywhere.items() if key in defaults}, **own}
    return found, faults


def _parameters(
    given: Any, methods: list[str], experts: list[str], layers: int | None
) -> tuple[dict[str, Table], list[str]]:
    """The canonical tables of all parameters that the methods have, and the faults."""
    if not isinstance(given, Mapping):
        return {}, ["parameters: must be a mapping"]
    wanted, faults = shared_parameters(methods)
    faults += [
        f"parameters.{key}: {' and '.join(methods)} has no such key.{suggest(str(key), wanted)}"
        for key in given
        if key not in wanted
    ]
    tables = {}
    for name, parameter in wanted.items():
        value = given.get(name, parameter.default)
        if value is None:
            faults.append(f"parameters.{name}: {' and '.join(methods)} needs it")
            continue
        tables[name], wrong = _table(value, f"parameters.{name}", parameter, experts, layers)
        faults += wrong
    return tables, faults


def shared_parameters(methods: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Parameter name -> `methods.Parameter`, of all these methods together, and the faults.

    A parameter that several methods have takes the tightest bounds, and the default that all of them share.
    """
    found: dict[str, Any] = {}
    faults = []
    for method in methods:
        for parameter in plugins.load("methods", method).PARAMETERS:
            other = found.setdefault(parameter.name, parameter)
            if other.per_expert != parameter.per_expert:
                faults.append(
                    f"method: {method} and another one mean different things by {parameter.name} (one value for "
                    "each expert, one for all); take other methods together"
                )
            found[parameter.name] = replace(
                other,
                low=max(other.low, parameter.low),
                high=min(other.high, parameter.high),
                open_low=other.open_low or parameter.open_low,
                default=other.default if other.default == parameter.default else None,
            )
    return found, faults


def name_faults(experts: Iterable[str]) -> list[str]:
    """What is wrong with experts' names: in a recipe they stand beside module groups."""
    return [
        f"experts.{name}: is {'the name of a module group' if name in MODULES else 'no name'}; "
        "name the expert otherwise"
        for name in experts
        if name in ("", ANY, *MODULES)
    ]


def expert_faults(method: str, count: int) -> list[str]:
    """What is wrong with merging `count` experts by a method."""
    fewest, most = plugins.load("methods", method).EXPERTS
    if count >= fewest and (most is None or count <= most):
        return []
    wanted = f"exactly {fewest}" if fewest == most else f"at least {fewest}"
    noun = "expert" if fewest == 1 else "experts"
    return [f"experts: {method} takes {wanted} {noun}, but there {'is' if count == 1 else 'are'} {count}"]


def _table(
    value: Any, path: str, parameter: Any, experts: list[str], layers: int | None
) -> tuple[Table, list[str]]:
    """A parameter's canonical table and its faults. See the module's docstring for what `value` may be."""
    keys = experts if parameter.per_expert else [""]
    faults: list[str] = []
    table: Table = {}

    def fill(node: Any, where: str, module: str, expert: str | None) -> None:
        if isinstance(node, Mapping):
            for key, child in node.items():
                here = f"{where}.{key}"
                if key in keys and expert is None:
                    fill(child, here, module, key)
                elif (key in (*MODULES, ANY) or is_pattern(str(key))) and module == "":
                    fill(child, here, key, expert)
                else:
                    faults.append(
                        f"{here}: is no {'expert, ' if parameter.per_expert else ''}module group or pattern here."
                        f"{suggest(str(key), [*(experts if parameter.per_expert else []), *MODULES, ANY])}"
                    )
            return
        values, wrong = _values(node, parameter, layers)
        faults.extend(f"{where}: {fault}" for fault in wrong)
        for key in keys if expert is None else [expert]:
            table.setdefault(module or ANY, {})[key] = values

    fill(value, path, "", None)
    if not faults:
        faults += _complete_rows(table, path, keys)
    return table, faults


def _complete_rows(table: Table, path: str, keys: list[str]) -> list[str]:
    """Fills rows' missing experts from ANY, orders rows, drops those that repeat ANY, tells what is missing."""
    default = table.get(ANY, {})
    missing = [key for key in keys if key not in default]
    named = [module for module in table if module != ANY]
    if missing and not set(MODULES) <= set(named):
        return [
            f"{path}: has no value for {key or 'the other module groups'}; "
            f"give {f'{path}.{key}' if key else f'{path}.*'}"
            for key in missing
        ]
    for module in named:
        row = {key: table[module].get(key, default.get(key)) for key in keys}
        if any(values is None for values in row.values()):
            return [f"{path}.{module}: has no value for {key}" for key in keys if row[key] is None]
        table[module] = row  # type: ignore[assignment]
    table.setdefault(ANY, table.get(MODULES[-1], {}))
    ordered = _ordered(table)
    table.clear()
    table.update(ordered)
    for module in MODULES:
        if table.get(module) == table[ANY]:
            del table[module]
    return []


def _values(node: Any, parameter: Any, layers: int | None) -> tuple[Values, list[str]]:
    numbers = node if isinstance(node, list) else [node]
    faults = []
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            return 0.0, [f"must be a number or a list of numbers, but is {number!r}"]
        if not math.isfinite(number):
            faults.append(f"must be finite, but is {number}")
        elif fault := parameter.fault(number):
            faults.append(fault)
    if isinstance(node, list) and layers is not None and len(node) != layers:
        faults.append(f"has {len(node)} values, but the model has {layers} layers")
    floats = [float(number) for number in numbers]
    if not isinstance(node, list) or (floats and all(number == floats[0] for number in floats)):
        return floats[0], faults
    return floats, faults


# --- files -------------------------------------------------------------------------------------------------


def faults_of(error: ValidationError) -> list[str]:
    """A pydantic error as one line a fault, each with its path in the file."""
    faults = []
    for detail in error.errors():
        path = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        for line in message.splitlines():
            prefix = f"{path}: " if path else ""
            if detail["type"] == "extra_forbidden":
                line = "is no key here; check its spelling, or remove it"
            elif detail["type"] == "missing":
                line = "is missing"
            faults.append(prefix + line)
    return faults


def read(path: Path, layers: int | None = None, dtype: str | None = None) -> Recipe:
    """The recipe in a file. Relative model paths are relative to the file.

    Args:
        layers, dtype: the base's, for a file that does not say.

    Raises:
        ConfigError: with every fault of the file.
    """
    data = catalog.read_yaml(path)
    data.pop("sha256", None)
    for key, value in (("layers", layers), ("dtype", dtype)):
        if value is not None:
            data.setdefault(key, value)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError(str(path), faults_of(error)) from error
    folder = path.resolve().parent
    return recipe.model_copy(
        update={
            "base": relocate(recipe.base, folder),
            "experts": {name: relocate(source, folder) for name, source in recipe.experts.items()},
        }
    )


def relocate(source: Source, folder: Path) -> Source:
    """The source with a local path made absolute; a Hub id stays as it is."""
    local = (folder / Path(source.model).expanduser()).resolve()
    explicit = source.model.startswith((".", "/", "~"))
    if source.revision is None and (explicit or local.exists() or source.model.count("/") != 1):
        return source.model_copy(update={"model": str(local)})
    return source


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, with its hash on top, in the short form that people write."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    content["parameters"] = {name: _shortened(table) for name, table in recipe.parameters.items()}
    content["options"] = _shortened_options(recipe)
    return catalog.write_yaml({"sha256": recipe.sha256, **{k: v for k, v in content.items() if v not in ([], {})}})


def _shortened(table: Table) -> Any:
    """A table without the keys that stand for everything: `*` alone, and "" for all experts together."""
    rows = {module: row.get("", row) for module, row in table.items()}
    return rows[ANY] if set(rows) == {ANY} else rows


def _shortened_options(recipe: Recipe) -> Any:
    return recipe.options if len(recipe.options) > 1 else next(iter(recipe.options.values()))
