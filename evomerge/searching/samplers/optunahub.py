"""Any sampler of OptunaHub, by its package's name: https://hub.optuna.org.

The package is downloaded on first use and kept in OptunaHub's cache; `registry` reads it from a folder instead. It
is code that others wrote, and it runs as it is. A study resumes exactly if the sampler draws from its `seed` only
and learns from the study's trials: each candidate is proposed by a new instance of it, so a sampler that remembers
in its own attributes learns nothing. The first generation is the known points.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field

from evomerge.errors import ConfigError, named_first_line, suggest
from evomerge.searching.samplers import Problem, Sampler, SamplerOptions
from evomerge.searching.samplers._alone import alone

FRESH_DOCUMENTS = False
SEVERAL_OBJECTIVES = True
WANTS_DOCUMENT_SCORES = False
LEARNS = True


class Options(SamplerOptions):
    """What a search by a package of OptunaHub may be told.

    Attributes:
        package: its name, such as `samplers/auto_sampler`.
        sampler: the class, if the package has several.
        arguments: the arguments of its constructor, other than the seed.
        ref: the registry's commit, branch or tag.
        registry: a folder that the package is in, to be read in place of the network.
        population: candidates proposed at once.
        memory: told candidates that it is shown, half of them the best and half the newest; all by default.
    """

    package: str = Field(min_length=1)
    sampler: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    ref: str = "main"
    registry: Path | None = None
    population: int = Field(default=4, ge=1)
    memory: int | None = Field(default=None, ge=10)


def make(problem: Problem, options: Options) -> Sampler:
    """A search over the problem's coordinates by a sampler of OptunaHub.

    Raises:
        ConfigError: the package cannot be had, or its sampler takes other arguments or no seed.
    """
    from evomerge.searching.samplers._optuna import OptunaSampler

    kind = _kind(_package(options), options)
    if "seed" not in inspect.signature(kind).parameters:
        raise _refusal(options, f"{kind.__name__} takes no seed, so that a study with it could not be resumed")

    def algorithm(seed: int) -> Any:
        return kind(**options.arguments, seed=seed)

    try:
        with alone():
            algorithm(0)
    except (TypeError, ValueError) as error:
        raise _refusal(options, f"{kind.__name__} does not take these arguments: {error}") from error
    return OptunaSampler(problem, options.population, algorithm, joint=False, memory=options.memory)


def _package(options: Options) -> ModuleType:
    """The package's module, from the network, OptunaHub's cache or the registry's folder."""
    try:
        import optunahub
    except ImportError as error:
        fault = f"needs OptunaHub ({error}). Install it: pip install 'evomerge[optunahub]'"
        raise ConfigError("sampler.optunahub", [fault]) from error
    try:
        if options.registry is None:
            return optunahub.load_module(options.package, ref=options.ref)
        return optunahub.load_local_module(options.package, registry_root=str(options.registry))
    except ModuleNotFoundError as error:
        raise _refusal(options, f"needs the Python package {error.name}: install it") from error
    except Exception as error:  # the package's own code runs here, and what it raises is anyone's guess
        raise _refusal(options, f"cannot be loaded ({named_first_line(error)}). {_cure(options)}") from error


def _cure(options: Options) -> str:
    """What to look at where a package cannot be loaded."""
    if options.registry is not None:
        return f"There has to be {options.registry / options.package}/__init__.py"
    return (
        "Check its name on https://hub.optuna.org and the network, or copy the package to a folder and name that "
        "as `registry`"
    )


def _kind(package: ModuleType, options: Options) -> Any:
    """The package's sampler class: its only one, or the one that the options name."""
    from optuna.samplers import BaseSampler

    public = getattr(package, "__all__", [name for name in vars(package) if not name.startswith("_")])
    kinds = {
        name: value
        for name in public
        if inspect.isclass(value := getattr(package, name, None)) and issubclass(value, BaseSampler)
    }
    kinds = {name: kind for name, kind in kinds.items() if not kind.__module__.startswith("optuna.")} or kinds
    if options.sampler is not None and options.sampler not in kinds:
        raise _refusal(options, f"has no sampler {options.sampler!r}.{suggest(options.sampler, kinds)}")
    if options.sampler is None and len(kinds) != 1:
        names = ", ".join(sorted(kinds))
        fault = f"has several samplers; name one as `sampler`: {names}" if kinds else "has no sampler"
        raise _refusal(options, fault)
    return kinds[options.sampler or next(iter(kinds))]


def _refusal(options: Options, fault: str) -> ConfigError:
    """The error that refuses the package."""
    return ConfigError("sampler.optunahub", [f"package {options.package!r} {fault}"])
