"""An experiment's operators: which act on every candidate, which on elites, and which options are searched.

```yaml
operators:
  - context_extension: {method: yarn, factor: 4, beta_fast: {low: 1.5, high: 64, scale: log}}
  - distillation: {when: {phase: elites, top: 0.25, min: 3}, data: {maths: maths.jsonl}, teachers: {maths: maths}}
```

An option that is a mapping with `low` and `high` is a gene, and one with `choose` is a choice. Each is a coordinate
of the genome, named like `context_extension.beta_fast`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from pydantic import Field, ValidationError, model_validator

from evomerge import plugins
from evomerge.errors import suggest
from evomerge.files.hashing import file_sha256
from evomerge.files.schema import Strict, faults_of
from evomerge.recipes.recipe import Corpus, OperatorStep
from evomerge.searching.spaces.genes import Coordinate, Gene


class OptionsOfOperator(Protocol):
    """What the search has to know of an operator's module; the whole contract stands in `operators`."""

    TRAINING: bool

    @property
    def Options(self) -> type[Strict]:  # noqa: N802
        """The model of the operator's options."""

    def corpora(self, options: Any) -> Mapping[str, Corpus]:
        """The files that it trains on."""


class Choice(Strict):
    """An option that takes one of several texts. The search starts with the first."""

    choose: tuple[str, ...] = Field(min_length=2)


class When(Strict):
    """Which candidates a training operator acts on, after the search.

    Attributes:
        top: the best candidates, as a share of those whose scores compare (`studies.second_phase`).
        min: the number of candidates that it acts on at least.
    """

    phase: Literal["elites"] = "elites"
    top: float = Field(default=0.25, gt=0.0, le=1.0)
    min: int = Field(default=3, ge=1)


class Operator(Strict):
    """An operator of an experiment, with its options; those that are searched are genes.

    Attributes:
        when: the elites that a training operator acts on; None takes the defaults of `When`. A pure operator acts
            on every candidate and has None.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    when: When | None = None

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, data: Any) -> Any:
        """Reads `NAME`, `NAME: {options, and when}`, or the mapping that `model_dump` gives."""
        if isinstance(data, str):
            return {"name": data}
        if not isinstance(data, Mapping) or "name" in data or len(data) != 1:
            return data
        ((name, options),) = data.items()
        if not isinstance(options, Mapping | None):
            raise ValueError(f"{name}: must be a mapping of the operator's options")
        options = dict(options or {})
        when = {"when": options.pop("when")} if "when" in options else {}
        return {"name": name, "options": options, **when}

    @model_validator(mode="after")
    def _sound(self) -> Operator:
        """Checks the name, `when`, and the options with every gene at its start and at its ends."""
        known = plugins.names("operators")
        if self.name not in known:
            raise ValueError(f"unknown operator {self.name!r}.{suggest(self.name, known)}")
        if not self.training and self.when is not None:
            raise ValueError(f"{self.name}.when: this operator acts on every candidate; remove it")
        genes = list(_genes(self.options))
        if self.training and genes:
            raise ValueError("\n".join(f"{self.name}.{path}: what trains is not searched" for path, _ in genes))
        faults = []
        for values in self._probes():
            try:
                self._validated(values)
            except ValidationError as error:
                faults += [fault for fault in faults_of(error) if fault not in faults]
        if faults:
            raise ValueError("\n".join(f"{self.name}.{fault}" for fault in faults))
        return self

    @property
    def module(self) -> OptionsOfOperator:
        """The operator's module."""
        return cast(OptionsOfOperator, plugins.load("operators", self.name))

    @property
    def training(self) -> bool:
        """Whether it is a training operator, which acts on elites only."""
        return self.module.TRAINING

    @property
    def elites(self) -> When:
        """The candidates that it acts on if it is a training operator."""
        return self.when or When()

    def coordinates(self) -> list[Coordinate]:
        """The coordinates of its searched options, in the order of the file."""
        return [self._coordinate(path, gene) for path, gene in _genes(self.options)]

    def _coordinate(self, path: str, gene: Gene | Choice) -> Coordinate:
        start, name = self._start(path, gene), f"{self.name}.{path}"
        if isinstance(gene, Choice):
            return Coordinate(name, 0.0, 1.0, start, False, gene.choose)
        point = Coordinate(name, gene.low, gene.high, start, gene.scale == "log", step=gene.step)
        return replace(point, init=point.nearest(float(start)))

    def step(self, genome: Mapping[str, float | str] | None = None) -> OperatorStep:
        """The operator as a recipe holds it, with every option; searched ones come from the genome.

        Without a genome, the searched options are where the search starts.
        """
        own = {} if genome is None else {path: genome[f"{self.name}.{path}"] for path, _ in _genes(self.options)}
        return self._step(own)

    def corpora(self) -> dict[str, Corpus]:
        """The files that it trains on, by the names that its options give them."""
        return dict(self.module.corpora(self._validated({})))

    def extremes(self) -> list[OperatorStep]:
        """The steps that a check has to look at: all genes at the start, then each at either end in turn."""
        return [self._step(values) for values in self._probes()]

    def _probes(self) -> Iterator[dict[str, Any]]:
        """Values of genes by path: none, which stands for the start, then each gene's ends one at a time."""
        yield {}
        for path, gene in _genes(self.options):
            for end in gene.choose if isinstance(gene, Choice) else (gene.low, gene.high):
                yield {path: end}

    def _step(self, values: Mapping[str, Any]) -> OperatorStep:
        return OperatorStep(name=self.name, options=self._validated(values).model_dump(mode="json"))

    def _validated(self, values: Mapping[str, Any]) -> Any:
        """The options, with the genes of `values` at those values and the others where the search starts."""
        return self.module.Options.model_validate(
            _filled(self.options, lambda path, gene: values.get(path, self._start(path, gene)))
        )

    def _start(self, path: str, gene: Gene | Choice) -> float | str:
        """Where the search starts in one gene.

        That is its `init`, else the operator's default if it lies within the bounds, else the middle of the bounds.
        """
        if isinstance(gene, Choice):
            return gene.choose[0]
        if gene.init is not None:
            return gene.init
        field = self.module.Options.model_fields.get(path)
        default = None if field is None else field.default
        if isinstance(default, int | float) and gene.low <= default <= gene.high:
            return float(default)
        return math.sqrt(gene.low * gene.high) if gene.scale == "log" else (gene.low + gene.high) / 2


def located(operator: Operator, folder: Path) -> tuple[Operator, list[str]]:
    """The operator with absolute paths and hashes of the files that it trains on, and the faults of these files.

    A file whose sha256 is known already is not read: a trained candidate can be built without it.

    Args:
        folder: the folder that paths are relative to.
    """
    if not operator.training:
        return operator, []
    given = operator.module.Options.model_validate(operator.options)
    faults: list[str] = []
    changed = {}
    for name in given.model_fields_set:
        value = getattr(given, name)
        absolute = _located(value, folder, f"operators.{operator.name}.{name}", faults)
        if absolute is not value:
            changed[name] = absolute
    return operator.model_copy(update={"options": {**operator.options, **changed}}), faults


def _located(value: Any, folder: Path, where: str, faults: list[str]) -> Any:
    """A value with each `Corpus` in it as a mapping of absolute path and sha256; the value itself if it has none.

    Faults are added to `faults`.
    """
    if isinstance(value, Mapping):
        inner = {key: _located(one, folder, f"{where}.{key}", faults) for key, one in value.items()}
        return inner if any(inner[key] is not value[key] for key in inner) else value
    if not isinstance(value, Corpus):
        return value
    file = (folder / Path(value.path).expanduser()).resolve()
    if value.sha256 is not None:
        return {"path": str(file), "sha256": value.sha256}
    if not file.is_file():
        faults.append(f"{where}: there is no file {file}")
        return value
    return {"path": str(file), "sha256": file_sha256(file)}


# --- genes among options -----------------------------------------------------------------------------------


def _genes(options: Any, path: str = "") -> Iterator[tuple[str, Gene | Choice]]:
    """The dotted path of each gene among the options, and the gene."""
    if isinstance(options, Mapping):
        gene = _gene(options, path)
        if gene is not None:
            yield path, gene
            return
        for key, value in options.items():
            yield from _genes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(options, list | tuple):
        for number, value in enumerate(options):
            yield from _genes(value, f"{path}.{number}")


def _gene(value: Mapping[str, Any], path: str) -> Gene | Choice | None:
    """The gene that a mapping among the options is; None if it is an ordinary mapping.

    Raises:
        ValueError: it looks like a gene but is none; one line a fault.
    """
    if not {"choose", "low", "high"} & set(value):
        return None
    try:
        gene = Choice.model_validate(value) if "choose" in value else Gene.model_validate(value)
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {fault}" for fault in faults_of(error))) from error
    if isinstance(gene, Gene) and gene.per:
        raise ValueError(f"{path}.per: an option holds for the whole model; remove it")
    return gene


def _filled(options: Any, value: Callable[[str, Gene | Choice], Any], path: str = "") -> Any:
    """The options with `value(path, gene)` in the place of each gene."""
    if isinstance(options, Mapping):
        gene = _gene(options, path)
        if gene is not None:
            return value(path, gene)
        return {key: _filled(one, value, f"{path}.{key}" if path else str(key)) for key, one in options.items()}
    if isinstance(options, list | tuple):
        return [_filled(one, value, f"{path}.{number}") for number, one in enumerate(options)]
    return options
