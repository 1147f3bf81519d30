"""The `parameters` of a mergekit file, at all its levels, for one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evomerge import plugins
from evomerge.errors import suggest
from evomerge.recipes.mergekit_yaml import passed_over
from evomerge.recipes.mergekit_yaml.dialects import DIALECTS
from evomerge.recipes.mergekit_yaml.values import Setting, constant, parse
from evomerge.recipes.parameters import Parameter

_DEFAULTS = {"density": 1.0}  # mergekit's defaults of parameters that have none with us

_EACH_MODEL = ("scale",)  # parameters of all experts together with us, which mergekit looks up for each model

_BOOL = TypeAdapter(bool)

LevelSettings = dict[str, Setting]  # parameter -> its setting in one `parameters`
Level = tuple[str, Mapping[str, Any]]  # the path and content of one `parameters`


class Parameters:
    """Reads the `parameters` of one method. Whatever is wrong with them is noted in `faults`.

    Attributes:
        notes: what changes nothing, see `passed_over`.
        known: the parameters that the method has with us, by name.
        defaults: the options that the method has with us -> their defaults.
        switches: our options that mergekit has -> mergekit's names for them.
    """

    def __init__(self, method: str) -> None:
        module = plugins.load("methods", method)
        self.method = method
        self.dialect = DIALECTS[method]
        self.known: dict[str, Parameter] = {parameter.name: parameter for parameter in module.PARAMETERS}
        self.defaults: dict[str, bool] = dict(module.OPTIONS)
        self.switches = {
            name: self.dialect.renamed.get(name, name) for name in module.OPTIONS if name != "task_vectors"
        }
        self.faults: list[str] = []
        self.notes = passed_over.Notes()

    def default(self, name: str) -> float | None:
        """A parameter's value where the file has none."""
        return _DEFAULTS.get(name, self.known[name].default)

    def level(
        self, path: str, given: Mapping[str, Any], *, of_model: bool = False, of_base: bool = False
    ) -> LevelSettings:
        """The settings of one `parameters`. Options are left to `options`, and null counts as not given.

        Args:
            of_model: whether it stands beside a model, where mergekit does not look up parameters of all models.
            of_base: whether it stands beside a base that is no expert.
        """
        settings = {}
        known = [name for name in self.known if name not in self.dialect.lacking]
        for_all = [name for name in known if not self._of_models(name)]
        for_all += [*self.switches.values(), *self.dialect.fixed]
        for name, value in given.items():
            here = f"{path}.{name}"
            if name in for_all and of_model:
                self.notes.add(here, passed_over.ONE_FOR_ALL)
            elif name in known and of_base:
                self.notes.add(here, passed_over.OF_THE_BASE)
            elif value is None and name in (*known, *for_all):
                pass
            elif name in self.dialect.fixed:
                self._check_fixed(here, value, self.dialect.fixed[name])
            elif name in known:
                setting, faults = parse(value, here, self.known[name].fault)
                self.faults += faults
                if setting is not None:
                    settings[name] = setting
                    for unreached in setting.unreached:
                        self.notes.add(unreached, passed_over.UNREACHED)
            elif name not in for_all:
                self.pass_over(here, str(name), {*known, *for_all})
        return settings

    def pass_over(self, path: str, name: str, known: set[str]) -> None:
        """Notes a parameter that the method does not have, or refuses it if mergekit has it nowhere.

        Args:
            known: the method's own parameters.
        """
        if name == "int8_mask":
            self.notes.add(path, passed_over.STORAGE)
        elif name in passed_over.PARAMETERS:
            self.notes.add(path, passed_over.not_of(self.method))
        elif name in passed_over.RUN_OPTIONS:
            self.notes.add(path, passed_over.COMMAND_LINE)
        else:
            self.faults.append(f"{path}: mergekit has no such parameter.{suggest(name, known)}")

    def _of_models(self, name: str) -> bool:
        """Whether mergekit looks a parameter up for each model."""
        return self.known[name].per_expert or name in _EACH_MODEL

    def _check_fixed(self, path: str, value: Any, wanted: float) -> None:
        """Notes a fault if a value is not the one that our method amounts to."""
        setting, faults = parse(value, path, lambda number: None)
        self.faults += faults
        if setting is not None and any(number != wanted for _, gradient in setting.rows for number in gradient):
            self.faults.append(f"{path}: is {wanted:g} in evomerge; remove it")

    def levels(self, name: str, given: Sequence[LevelSettings], *, absent: bool = False) -> tuple[Setting, ...]:
        """One parameter's settings in the order in which mergekit looks them up, its default last.

        Args:
            absent: whether the model takes no part in the slice. Its weight is 0 then.
        """
        if absent:
            given = []
        settings = [level[name] for level in given if name in level]
        if absent and name == "weight":
            return (constant(0.0),)
        default = self.default(name)
        return (*settings, *([] if default is None else [constant(default)]))

    def options(self, everywhere: Sequence[Level], slices: Sequence[Level]) -> dict[str, bool]:
        """The method's options under our names. Each has to be the same in all slices.

        Args:
            everywhere: the `parameters` that hold for all slices, those that others override first.
            slices: those of each slice.
        """
        chosen = dict(self.defaults)
        for ours, theirs in self.switches.items():
            default = self.defaults[ours]
            outer = default
            for path, given in everywhere:
                outer = self._switch(f"{path}.{theirs}", given.get(theirs), outer)
            by_slice = [
                (f"{path}.{theirs}", self._switch(f"{path}.{theirs}", given.get(theirs), outer))
                for path, given in slices
            ]
            chosen[ours] = by_slice[0][1] if by_slice else outer
            self.faults += [
                f"{path}: is {str(on).lower()} here and otherwise in another slice; evomerge has one for the model"
                for path, on in by_slice
                if on != chosen[ours]
            ]
        return chosen

    def _switch(self, path: str, value: Any, default: bool) -> bool:
        """An option's value, the default where it is null; False, and a fault, if it is none."""
        if value is None:
            return default
        try:
            return _BOOL.validate_python(value)
        except ValidationError:
            self.faults.append(f"{path}: must be true or false, one for the whole model")
            return False
