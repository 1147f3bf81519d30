"""The experiment file: its keys, its checks, and how it is read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from evomerge import plugins
from evomerge.errors import ConfigError, suggest
from evomerge.files import shipped, yaml
from evomerge.files.hashing import digest_of_json
from evomerge.files.schema import Strict, faults_of
from evomerge.models.source import Dtype, SourceField, Vocabulary, relocate
from evomerge.recipes.canonical import name_faults
from evomerge.recipes.recipe import Compile
from evomerge.scoring.fitness import Fitness
from evomerge.searching import samplers
from evomerge.searching.documents import Fidelity
from evomerge.searching.samplers import SamplerModule
from evomerge.searching.spaces.genes import Genome
from evomerge.searching.spaces.operator_genes import Operator, located
from evomerge.searching.spaces.space import SearchSpace, parse_genome
from evomerge.studies.storage import known_storage, resolve_storage
from evomerge.studies.workers.resources import Auto, Workers


class SamplerChoice(BaseModel):
    """The name of a sampler, with the sampler's options as further keys."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @model_validator(mode="after")
    def _known(self) -> SamplerChoice:
        known = plugins.names("samplers")
        if self.name not in known:
            raise ValueError(f"name: unknown sampler {self.name!r}.{suggest(self.name, known)}")
        try:
            self.module.Options.model_validate(self.options)
        except ValidationError as error:
            raise ValueError("\n".join(faults_of(error))) from error
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options, as the file gives them."""
        return dict(self.model_extra or {})

    @property
    def module(self) -> SamplerModule:
        """The sampler's module."""
        return samplers.load(self.name)

    @property
    def climbs_gradients(self) -> bool:
        """Whether the search asks for derivatives of the fitness."""
        return self.module.Options.model_validate(self.options).climbs_gradients


class Budget(Strict):
    """When a study ends: at whichever limit comes first.

    Attributes:
        candidates: the number of candidates.
        documents: the number of document evaluations.
        hours: the hours that the study has been running for, all sessions together.
    """

    candidates: int | None = Field(default=None, ge=1)
    documents: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _some(self) -> Budget:
        if self.candidates is None and self.documents is None and self.hours is None:
            raise ValueError("give at least one of candidates, documents, hours")
        return self


def _parse_sampler(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Experiment(Strict):
    """An experiment file, with its search space and fitness read in and its paths absolute.

    Attributes:
        base, experts: the model that the experts were trained from; name -> expert.
        space: what may vary.
        fitness: the tasks that candidates are scored by.
        sampler: who proposes candidates.
        budget: when the search ends.
        fidelity: which documents are spent on which candidate.
        mode: `generations` waits for the last candidate of a generation before it asks for the next; `async` never
            waits.
        warm_start: whether the search begins with points that are known to be good, see `spaces.known_points`.
        starts: points to look at first: folders of earlier studies, for the best point of each; and genomes, whose
            missing coordinates are at their `init`. A study keeps all of them as genomes, and needs no other study.
        seed: the seed of all that is drawn, in [0, 2**31).
        workers: the processes that evaluate candidates.
        dtype: the dtype of merged models; `auto` is the base's.
        vocabulary, compile: see `models.source.Vocabulary` and `recipes.recipe.Compile`.
        operators: what acts on candidates after the merge, in this order.
        storage: where the log of finished trials is kept. `journal` is the file STUDY/journal.log; `sqlite` the
            database STUDY/journal.db; `sqlite:///PATH` a database file elsewhere; `postgresql://USER@HOST/NAME`, or
            another SQLAlchemy URL that Optuna takes, a server, which many studies may share. The experiment is kept
            in STUDY, so no password belongs here: ${NAME} in a URL stands for an environment variable, read anew
            whenever the database is opened.
        study: the study's folder, which docstrings call STUDY.
    """

    base: SourceField
    experts: dict[str, SourceField] = Field(min_length=1)
    space: SearchSpace
    fitness: Fitness
    sampler: Annotated[SamplerChoice, BeforeValidator(_parse_sampler)] = Field(
        default_factory=lambda: SamplerChoice(name="cma")
    )
    budget: Budget
    fidelity: Fidelity = Fidelity()
    mode: Literal["generations", "async"] = "generations"
    warm_start: bool = True
    starts: tuple[str | Annotated[Genome, BeforeValidator(parse_genome)], ...] = ()
    seed: int = Field(default=0, ge=0, lt=2**31)
    workers: Workers = Workers()
    dtype: Auto | Dtype = "auto"
    vocabulary: Vocabulary | None = None
    compile: Compile = "auto"
    operators: tuple[Operator, ...] = ()
    storage: Annotated[str, AfterValidator(known_storage)] = "journal"
    study: str

    def search_digest(self) -> str:
        """A hash of the keys that decide, besides fitness and space, which candidates a search looks at."""
        content = self.model_dump(mode="json", include={"sampler", "fidelity", "mode"})
        return digest_of_json(content)[:16]

    @model_validator(mode="after")
    def _known_names(self) -> Experiment:
        names = [operator.name for operator in self.operators]
        faults = name_faults(self.experts)
        faults += [f"operators.{name}: is there twice" for name in sorted(set(names)) if names.count(name) > 1]
        faults += self._operator_faults()
        if self.fitness.objective == "pareto" and not self.sampler.module.SEVERAL_OBJECTIVES:
            many = [name for name in plugins.names("samplers") if samplers.load(name).SEVERAL_OBJECTIVES]
            faults.append(
                f"sampler: {self.sampler.name} takes one objective, but fitness.objective is pareto; "
                f"take one of {', '.join(many)}"
            )
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _operator_faults(self) -> list[str]:
        """The faults of an experiment whose other keys do not go with its operators."""
        faults = []
        if self.sampler.climbs_gradients and not all(operator.training for operator in self.operators):
            faults.append("sampler: gradients do not pass through operators; take another one, or none of these")
        training = [operator for operator in self.operators if operator.training]
        trains = [operator.name for operator in training]
        if trains and self.fitness.objective == "pareto":
            faults.append(
                f"operators.{trains[0]}: acts on the best, but with fitness.objective pareto no candidate is; "
                "export some of the front, and train them by `evomerge distill`"
            )
        if len({str(operator.elites) for operator in training}) > 1:
            faults.append(f"operators: {' and '.join(trains)} act on the same elites; give both the same `when`")
        return faults


def load_experiment(path: Path) -> Experiment:
    """The experiment in a file, with absolute paths. In the file they are relative to the file.

    Raises:
        ConfigError: with every fault of the file, its search space and its fitness.
    """
    folder = path.resolve().parent
    experiment = _validated(path, folder)
    operators = [located(operator, folder) for operator in experiment.operators]
    if faults := [fault for _, wrong in operators for fault in wrong]:
        raise ConfigError(str(path), faults)
    return experiment.model_copy(
        update={
            "operators": tuple(operator for operator, _ in operators),
            "base": relocate(experiment.base, folder),
            "experts": {name: relocate(source, folder) for name, source in experiment.experts.items()},
            "storage": resolve_storage(experiment.storage, folder),
            "starts": tuple(
                str((folder / Path(one).expanduser()).resolve()) if isinstance(one, str) else one
                for one in experiment.starts
            ),
            "study": str((folder / Path(experiment.study).expanduser()).resolve()),
        }
    )


def _validated(path: Path, folder: Path) -> Experiment:
    """The experiment in a file of a folder, with its search space and fitness read in and other paths as they are.

    Raises:
        ConfigError: with every fault of the file, its search space and its fitness.
    """
    data = yaml.read_yaml(path)
    errors: list[ConfigError] = []
    refused: set[str] = set()
    for key, reader in (("space", read_space), ("fitness", read_fitness)):
        if key in data:
            try:
                data[key] = reader(data[key], folder, f"{path}: {key}")
            except ConfigError as error:
                errors.append(error)
                refused.add(key)
    experiment = None
    try:
        experiment = Experiment.model_validate({key: value for key, value in data.items() if key not in refused})
    except ValidationError as error:
        missing = {f"{key}: is missing" for key in refused}
        faults = [fault for fault in faults_of(error) if fault not in missing]
        errors[:0] = [ConfigError(str(path), faults)] if faults else []
    if errors or experiment is None:
        raise ConfigError.join(errors)
    return experiment


Model = TypeVar("Model", bound=BaseModel)
_CATALOG = {"space": "search_spaces", "fitness": "fitness"}


def _read(
    key: str,
    model: type[Model],
    value: Any,
    folder: Path,
    where: str,
    finish: Callable[[dict[str, Any], Path], None],
) -> Model:
    """Reads a search space or fitness, given as a mapping or as the name or path of a file that holds one.

    Args:
        key: the experiment's key, `space` or `fitness`.
        model: what the mapping is read as.
        value: the value of the key.
        folder: the folder that paths are relative to.
        where: names the value in messages.
        finish: is called with the mapping and its folder, and makes paths in the mapping absolute.

    Raises:
        ConfigError: with every fault.
    """
    if isinstance(value, str):
        file = shipped.find(_CATALOG[key], value, folder, where)
        value, folder, where = yaml.read_yaml(file), file.parent, str(file)
    if not isinstance(value, Mapping):
        raise ConfigError(where, ["must be a name, a path or a mapping"])
    data = dict(value)
    if key in data and "experts" in data:  # the file is an experiment, which has a space or fitness under that key
        return _read(key, model, data[key], folder, f"{where}: {key}", finish)
    finish(data, folder)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(where, faults_of(error)) from error


def read_space(value: Any, folder: Path, where: str) -> SearchSpace:
    """The search space that an experiment's `space` means.

    Raises:
        ConfigError: with every fault.
    """
    return _read("space", SearchSpace, value, folder, where, lambda data, home: None)


def read_fitness(value: Any, folder: Path, where: str) -> Fitness:
    """The fitness that an experiment's `fitness` means, its include path absolute.

    Raises:
        ConfigError: with every fault.
    """

    def absolute_include(data: dict[str, Any], home: Path) -> None:
        if isinstance(data.get("include"), str):
            include = (home / Path(data["include"]).expanduser()).resolve()
            if not include.is_dir():
                raise ConfigError(where, [f"include: there is no folder {include}"])
            data["include"] = str(include)

    return _read("fitness", Fitness, value, folder, where, absolute_include)


def experiment_to_yaml(experiment: Experiment) -> str:
    """The text of an experiment file that holds its space and fitness, and whose paths are absolute."""
    data = experiment.model_dump(mode="json", exclude_none=True)
    data["sampler"] = {"name": experiment.sampler.name, **experiment.sampler.options}
    return yaml.write_yaml(data)
