"""Gradients through the merge: from ∂F/∂W to ∂F/∂c, of all coefficients c at once.

Merged weights are a differentiable function of the coefficients, if what selects elements is held fixed: masks,
thresholds, ranks, elected signs. So one pass back through the live model gives the slope of the fitness in every
coefficient, ∂F/∂c = ⟨∂F/∂W, ∂W/∂s⟩ ∂s/∂c, s being a method's scalars. The first factor is taken tensor by tensor in
a hook that frees the parameter's gradient, block by block as in `kernels`; the second is had from the method's
`scalars` by central differences in float64.

What selects elements by magnitude has no slope of use: as a function of the density, the weights jump an element at
a time, and are flat between. Its derivative is 0 here. A mask that drops at random is worth an estimate all the
same, straight through (Bengio et al. 2013, arXiv 1308.3432): m(d) ≈ m(d0)·d/d0, as its expectation goes. Then ∂W/∂d
is what is kept, over d; and with `rescale` it is 0, for then the expectation does not depend on the density.

Elected signs depend on the weights, and an element jumps where its sign flips. Between flips the derivative in
`weight` is exact, but it says nothing of the jumps, which over steps that a search takes may outweigh it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evomerge import plugins
from evomerge.errors import CandidateError
from evomerge.merging.kernels import passes
from evomerge.merging.kernels.arguments import Arguments, named_scalars
from evomerge.merging.methods import ByColumn, ByRow, Scalars, TensorInputs, differentiable
from evomerge.models.tensor_names import Place, is_pattern, key_of
from evomerge.recipes.recipe import Recipe

# parameter -> row -> expert, or "" for all experts together -> derivatives by layer
Tables = dict[str, dict[str, dict[str, list[float]]]]


# A tensor's name -> (θ0, [θk]), good until the next name is asked for.
Fetch = Callable[[str], tuple[Tensor, list[Tensor]]]

# Elements of a block; autograd's steps are dearer to start than plain ones, and on a GPU dearer still.
_BLOCK, _DEVICE_BLOCK = 1 << 17, 1 << 24


_STEP = float(np.cbrt(np.finfo(np.float64).eps))  # of central differences, where both errors are least


def refuse(methods: Sequence[str]) -> None:
    """Refuses methods that no gradient goes through.

    Raises:
        CandidateError: naming them.
    """
    if flat := [name for name in methods if not differentiable(plugins.load("methods", name))]:
        raise CandidateError(f"no gradient goes through {' and '.join(flat)}: none of its parameters has a slope")


@dataclass(frozen=True)
class Part:
    """One tensor of a recipe. arguments: of its pass, see `kernels.arguments`."""

    place: Place
    parameter: nn.Parameter
    method: ModuleType
    inputs: TensorInputs
    arguments: Arguments


@dataclass(frozen=True)
class ScalarGradient:
    """∂F/∂s of one tensor's float scalars. floats: (n,), arrays: in their shapes; float64, on the device."""

    floats: Tensor
    arrays: tuple[Tensor, ...]

    def __add__(self, other: ScalarGradient) -> ScalarGradient:
        pairs = zip(self.arrays, other.arrays, strict=True)
        return ScalarGradient(self.floats + other.floats, tuple(one + two for one, two in pairs))


def pull_back(part: Part, gradient: Tensor, base: Tensor, experts: Sequence[Tensor]) -> ScalarGradient:
    """⟨∂F/∂W, ∂W/∂s⟩ of one tensor, block by block; float32, summed over blocks in float64.

    gradient: ∂F/∂W, of the parameter's shape, any float dtype. base, experts: as in `kernels.merge`.
    """
    given = part.arguments
    floats = torch.zeros_like(given.floats, dtype=torch.float64)
    arrays = tuple(torch.zeros_like(array, dtype=torch.float64) for array in given.arrays)
    if not gradient.numel():
        return ScalarGradient(floats, arrays)
    shape = passes._shape(gradient, given.along)
    whole = [tensor.reshape(shape) for tensor in (gradient, base, *experts)]
    width = gradient.numel() // shape[0]
    step = max(1, (_BLOCK if gradient.device.type == "cpu" else _DEVICE_BLOCK) // width)
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        mine = rows if given.along == "rows" else slice(None)
        leaves = [leaf.detach().requires_grad_() for leaf in (given.floats, *(a[:, mine] for a in given.arrays))]
        slope, first, *rest = (tensor[rows].float() for tensor in whole)
        with torch.enable_grad():
            s = named_scalars(given.layout, leaves[0], given.ints, tuple(leaves[1:]))
            if part.method.NEEDS_ELEMENT_NUMBERS:
                s["element"] = passes._elements(first, passes._starting_at(given.ints, start * width)[-1], None)
            merged = part.method.merge(first, rest, s, part.inputs.options)
        # What only selects elements has no part in the graph.
        found = torch.autograd.grad(merged, leaves, slope, allow_unused=True)
        for total, one in zip((floats, *(a[:, mine] for a in arrays)), found, strict=True):
            if one is not None:
                total += one
    return ScalarGradient(floats, arrays)


class Gradient:
    """∂F/∂c of one recipe, collected from the passes that go back through the live model meanwhile."""

    def __init__(self, recipe: Recipe, parts: Sequence[Part], fetch: Fetch) -> None:
        self._recipe, self._parts, self._fetch = recipe, parts, fetch
        self._sums: dict[int, ScalarGradient] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The parameters require gradients, which are taken as they come and freed; all is put back afterwards."""
        with ExitStack() as undo:
            for number, part in enumerate(self._parts):
                undo.callback(part.parameter.requires_grad_, part.parameter.requires_grad)
                undo.callback(setattr, part.parameter, "grad", part.parameter.grad)
                part.parameter.grad = None
                part.parameter.requires_grad_(True)
                hooks: Any = part.parameter
                undo.callback(hooks.register_post_accumulate_grad_hook(self._taker(number)).remove)
            yield

    def _taker(self, number: int) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            part = self._parts[number]
            base, experts = self._fetch(part.place.name)
            found = pull_back(part, gradient, base, experts)
            if gradient.is_cuda:  # the buffers that base and experts lie in are filled anew for the next tensor
                torch.cuda.current_stream(gradient.device).synchronize()
            self._sums[number] = self._sums[number] + found if number in self._sums else found

        return take

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """What is collected inside counts unless it is left by an exception."""
        before = dict(self._sums)
        try:
            yield
        except BaseException:
            self._sums = before
            for part in self._parts:
                part.parameter.grad = None
            raise

    def tables(self) -> Tables:
        """The derivatives of what was collected so far.

        Returns: parameter -> row -> expert, or "" -> one derivative for each layer: the sum over the tensors that
            take this value by `Recipe.coefficients`. Rows are the patterns of the recipe's own table, and of all
            other tensors the module group: a recipe drops the rows of module groups that are equal to `*`, and
            their derivatives are not equal. Those of one layer's number hold what lies outside the layers as well.

        Raises:
            CandidateError: a derivative is not finite.
        """
        found: Tables = {name: {} for name in self._recipe.parameters}
        for number, part in enumerate(self._parts):
            chained = _chain(part, self._sums.get(number))
            for parameter in part.method.PARAMETERS:
                row = found[parameter.name].setdefault(self._row(parameter.name, part.place), {})
                keys = part.inputs.experts if parameter.per_expert else ("",)
                for key, slope in zip(keys, chained[parameter.name], strict=True):
                    if not np.isfinite(slope):
                        raise CandidateError(f"{part.place.name}: the derivative in {parameter.name} is not finite")
                    row.setdefault(key, [0.0] * self._recipe.layers)[part.place.layer] += slope
        return found

    def _row(self, parameter: str, place: Place) -> str:
        return key_of(filter(is_pattern, self._recipe.parameters[parameter]), place) or place.module


def _chain(part: Part, pulled: ScalarGradient | None) -> dict[str, list[float]]:
    """∂F/∂c of one tensor's values: parameter -> one for each value. pulled: None where no pass came by."""
    values = {name: list(own) for name, own in part.inputs.values.items()}
    found = {name: [0.0] * len(own) for name, own in values.items()}
    if pulled is None:
        return found
    slopes = np.concatenate([one.flatten().cpu().numpy() for one in (pulled.floats, *pulled.arrays)])
    which = np.flatnonzero(slopes)  # thresholds may be infinite, and have none

    def scalars(name: str, at: int, value: float) -> np.ndarray:
        own = tuple(value if k == at else other for k, other in enumerate(values[name]))
        moved = replace(part.inputs, values={**part.inputs.values, name: own})
        return _flat(part.method.scalars(moved))[which]

    for name in differentiable(part.method):
        for at, value in enumerate(values[name]):
            step = _STEP * max(1.0, abs(value))
            rise = scalars(name, at, value + step) - scalars(name, at, value - step)
            found[name][at] = float(slopes[which] @ rise) / (2.0 * step)
    if part.method.NEEDS_ELEMENT_NUMBERS and "density" in values and not part.inputs.options["rescale"]:
        found["density"] = _straight_through(part, pulled)
    return found


def _straight_through(part: Part, pulled: ScalarGradient) -> list[float]:
    """∂F/∂d of masks that drop at random: their `factor` taken to be in proportion to the density."""
    named = named_scalars(part.arguments.layout, pulled.floats, part.arguments.ints, pulled.arrays)
    factors = part.method.scalars(part.inputs)["factor"]
    slopes = named["factor"].tolist()
    return [
        slope * factor / density
        for slope, factor, density in zip(slopes, factors, part.inputs.values["density"], strict=True)
    ]


def _flat(scalars: Scalars) -> np.ndarray:
    """All floats one behind the other, in the order of `Pulled`, float64."""
    floats = [one for one in scalars.values() if isinstance(one, list) and type(one[0]) is not int]
    arrays = [one.array for one in scalars.values() if isinstance(one, ByRow | ByColumn)]
    return np.concatenate([np.asarray(one, dtype=np.float64).ravel() for one in (*floats, *arrays)])
