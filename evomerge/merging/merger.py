"""Writes merged candidates into a live model, in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from evomerge.errors import CandidateError
from evomerge.merging import gradients, methods
from evomerge.merging.gradients import Gradient, Part
from evomerge.merging.kernels import compiling, passes
from evomerge.merging.kernels.arguments import arguments
from evomerge.merging.methods import TensorInputs
from evomerge.merging.parents import open_parents
from evomerge.merging.placement import Kind
from evomerge.merging.table_store import Statistics
from evomerge.models import Progress, fitting, tensor_names
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.live_weights import LiveWeights
from evomerge.models.tensor_names import Place
from evomerge.recipes.recipe import Compile, Recipe

# Compiling costs seconds once per worker and saves about a second per 15 million parameters and candidate.
WORTH_COMPILING = 20_000_000


class Merger:
    """Merges recipes into one live model, again and again.

    Args:
        weights: the live model's weights. Those that are merged are overwritten in place. Saved buffers and carried
            tensors in which all parents are equal stay the base's, bit for bit, whatever the method.
        base, experts: opened checkpoints; the experts by name.
        cache: the folder of the tables that methods look up.
        compiled: whether to run fused passes; `auto` runs them for models of `WORTH_COMPILING` parameters or more.
        progress: told which table is being computed.
        residency: where base and experts lie; `auto` decides it.

    Raises:
        CheckpointError: the checkpoints do not fit the model.
    """

    def __init__(
        self,
        weights: LiveWeights,
        base: Checkpoint,
        experts: Mapping[str, Checkpoint],
        cache: Path,
        compiled: Compile = "auto",
        *,
        progress: Progress = lambda text: None,
        residency: Literal["auto"] | Kind = "auto",
    ) -> None:
        self.weights, self._parameters = weights, weights.merged
        shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        fitting.check_fit(base, experts, shapes)
        self.places = tensor_names.places(self._parameters, weights.carried)
        self.layers = tensor_names.layer_count(self.places)
        self.base, self.experts = base, dict(experts)
        self._statistics = Statistics(base, experts, list(self._parameters), cache, progress)
        self._equal = {name for name in self._parameters if self._is_equal(name)}
        self._parents = open_parents(residency, base, self.experts, list(self._parameters), self.device)
        self.compiled = self._decide(compiled)

    def _decide(self, compiled: Compile) -> bool:
        """Whether passes run compiled."""
        if compiled == "auto":
            size = sum(parameter.numel() for parameter in self._parameters.values())
            return size >= WORTH_COMPILING and compiling.can_compile(self.device)
        return compiled == "always"

    def _is_equal(self, name: str) -> bool:
        """Whether a tensor that is no parameter is the same in all parents. The live model holds it already."""
        if isinstance(self._parameters[name], nn.Parameter):
            return False
        own = self.base[name]
        others = [expert[name] for expert in self.experts.values()]
        return all(other.dtype == own.dtype and torch.equal(other, own) for other in others)

    @property
    def device(self) -> torch.device:
        """The device of the live model."""
        return next(iter(self._parameters.values())).device

    def apply(self, recipe: Recipe) -> None:
        """Overwrites the model's parameters with the recipe's.

        Raises:
            CandidateError: the recipe is for another model or other experts.
        """
        self._check(recipe)
        parts = self._parts(recipe)
        streamed = self._parents.stream([part.place.name for part in parts], list(recipe.experts))
        for part, (base, experts) in zip(parts, streamed, strict=True):
            options, out = part.inputs.options, part.parameter.data
            passes.merge(part.method, options, out, base, experts, part.arguments, compiled=self.compiled)

    def _check(self, recipe: Recipe) -> None:
        """Refuses a recipe for another model or other experts."""
        if unknown := sorted(set(recipe.experts) - set(self.experts)):
            raise CandidateError(f"the recipe merges {', '.join(unknown)}, which is not open here")
        if recipe.layers != self.layers:
            raise CandidateError(f"the recipe is for {recipe.layers} layers, but the model has {self.layers}")

    def _parts(self, recipe: Recipe) -> list[Part]:
        """The recipe tensor by tensor, in the order of the model's parameters."""
        places = [place for name, place in self.places.items() if name not in self._equal]
        chosen = [methods.load(recipe.method_at(place)) for place in places]
        inputs = [_inputs(recipe, place, self._statistics) for place in places]
        scalars = [method.scalars(own) for method, own in zip(chosen, inputs, strict=True)]
        given = arguments(scalars, self.device)
        tensors = [self._parameters[place.name] for place in places]
        columns = (places, tensors, chosen, inputs, given)
        return [Part(*row) for row in zip(*columns, strict=True)]

    @contextmanager
    def gradient(self, recipe: Recipe) -> Iterator[Gradient]:
        """Takes the gradients of passes back through the live model, and turns them into the coefficients'.

            merger.apply(recipe)
            with merger.gradient(recipe) as gradient:
                scorer.backward(documents, terms, gradient.attempt)
            tables = gradient.tables()

        Args:
            recipe: the recipe that the live model holds.

        Raises:
            CandidateError: the recipe is for another model or other experts, or has a method without derivatives.
        """
        self._check(recipe)
        gradients.refuse(recipe.methods)
        experts = list(recipe.experts)
        collected = Gradient(
            recipe, self._parts(recipe), lambda name: next(iter(self._parents.stream([name], experts)))
        )
        with collected.hooked():
            yield collected

    def sha256(self) -> str:
        """The hash of the live model's weights."""
        return self.weights.sha256()


def _inputs(recipe: Recipe, place: Place, statistics: Statistics) -> TensorInputs:
    """What a method may use about one tensor of a recipe."""
    return TensorInputs(
        name=place.name,
        experts=tuple(recipe.experts),
        values=recipe.coefficients(place),
        options=recipe.options[recipe.method_at(place)],
        seed=recipe.seed,
        table=lambda kind, experts: statistics.table(kind, experts, place.name),
    )


def prepare(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    places: Mapping[str, Place],
    recipes: Iterable[Recipe],
    cache: Path,
    progress: Progress,
) -> None:
    """Computes the tables that recipes look up, once for all workers.

    Args:
        base, experts: opened checkpoints; the experts by name.
        places: tensor that is merged -> where it sits.
        cache: the folder of the tables.
        progress: told which table is being computed.

    Raises:
        CheckpointError: a tensor has values that are not finite.
        StudyError: the cache cannot be written.
    """
    statistics = Statistics(base, experts, list(places), cache, progress)
    for recipe in recipes:
        for place in places.values():
            methods.load(recipe.method_at(place)).scalars(_inputs(recipe, place, statistics))
