"""Writes candidates into a live model, in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from evomerge import checkpoints, kernels, plugins, statistics, tensors
from evomerge.checkpoints import Checkpoint
from evomerge.errors import CandidateError
from evomerge.methods import TensorInputs
from evomerge.recipe import Recipe

Compile = Literal["auto", "always", "never"]

# Compiling costs seconds once per worker and saves about a second per 15 million parameters and candidate.
WORTH_COMPILING = 20_000_000

_GPU_RESERVE = 0.2  # of a GPU's memory that resident checkpoints leave to activations


class Merger:
    """Merges recipes into one live model, again and again.

    Args:
        model: the live model. Its parameters are overwritten in place, its buffers stay the base's.
        base, experts: opened checkpoints; the experts by name.
        cache: the folder of the tables that methods look up.
        compiled: whether to run fused passes; `auto` does for models that are worth it.

    Raises:
        CheckpointError: the checkpoints do not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Checkpoint,
        experts: Mapping[str, Checkpoint],
        cache: Path,
        compiled: Compile = "auto",
        progress: statistics.Progress = lambda text: None,
    ) -> None:
        self._parameters = dict(model.named_parameters())  # tied ones once
        shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        checkpoints.check_fit(base, experts, shapes)
        self.places = tensors.places(self._parameters)
        self.layers = tensors.layer_count(self.places)
        self._base, self._experts = base, dict(experts)
        self._cache, self._progress = cache, progress
        self._tables: dict[tuple[str, str], statistics.Statistics] = {}
        self._resident: dict[tuple[str, str], torch.Tensor] = {}
        self.compiled = self._decide(compiled)

    def _decide(self, compiled: Compile) -> bool:
        if compiled == "auto":
            size = sum(parameter.numel() for parameter in self._parameters.values())
            return size >= WORTH_COMPILING and kernels.can_compile(self.device)
        return compiled == "always"

    @property
    def device(self) -> torch.device:
        """Where the live model is."""
        return next(iter(self._parameters.values())).device

    def apply(self, recipe: Recipe) -> None:
        """Overwrites the model's parameters with the recipe's.

        Raises:
            CandidateError: the recipe is for another model or other experts.
        """
        if unknown := sorted(set(recipe.experts) - set(self._experts)):
            raise CandidateError(f"the recipe merges {', '.join(unknown)}, which is not open here")
        if recipe.layers != self.layers:
            raise CandidateError(f"the recipe is for {recipe.layers} layers, but the model has {self.layers}")
        method = plugins.load("methods", recipe.method)
        for name, parameter in self._parameters.items():
            inputs = self._inputs(method.TABLES, recipe, name)
            kernels.run(
                method,
                recipe.options,
                parameter.data,
                self._tensor("", self._base, name),
                [self._tensor(expert, self._experts[expert], name) for expert in recipe.experts],
                method.scalars(inputs),
                compiled=self.compiled,
            )

    def sha256(self) -> str:
        """The hash of the live model's weights."""
        return tensors.sha256({name: parameter.data for name, parameter in self._parameters.items()})

    def _inputs(self, kinds: frozenset[str], recipe: Recipe, name: str) -> TensorInputs:
        experts = tuple(recipe.experts)
        cosines = {}
        if "cosine" in kinds:
            cosines = {expert: self._table("cosine", expert).cosine(name) for expert in experts}

        def threshold(expert: str, density: float) -> float:
            return self._table("magnitude", expert).threshold(name, density)

        return TensorInputs(
            name=name,
            experts=experts,
            values=recipe.coefficients(self.places[name]),
            options=recipe.options,
            seed=recipe.seed,
            threshold=threshold if "magnitude" in kinds else None,
            cosine=cosines,
        )

    def _table(self, kind: str, expert: str) -> statistics.Statistics:
        if (kind, expert) not in self._tables:
            self._tables[kind, expert] = statistics.load(
                kind, self._base, self._experts[expert], list(self._parameters), self._cache, self._progress
            )
        return self._tables[kind, expert]

    def _tensor(self, key: str, checkpoint: Checkpoint, name: str) -> torch.Tensor:
        """A checkpoint's tensor on the model's device: mapped on CPU; on GPU kept there while there is room."""
        tensor = checkpoint[name]
        if self.device.type == "cpu":
            return tensor
        if (key, name) in self._resident:
            return self._resident[key, name]
        moved = tensor.to(self.device, non_blocking=True)
        free, total = torch.cuda.mem_get_info(self.device)
        if free > _GPU_RESERVE * total:
            self._resident[key, name] = moved
        return moved
