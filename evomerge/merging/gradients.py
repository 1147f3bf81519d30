"""Gradients through the merge: from ∂F/∂W to ∂F/∂c, for all coefficients c at once.

Merged weights are a differentiable function of the coefficients if masks, thresholds, ranks and elected signs are
held fixed. So one pass back through the live model gives the slope of the fitness in every coefficient, ∂F/∂c =
⟨∂F/∂W, ∂W/∂s⟩ ∂s/∂c, where s are a method's scalars. The first factor is taken tensor by tensor in a hook that
frees the parameter's gradient, block by block as in `merging.kernels.passes`. The second comes from the method's
`scalars` by central differences in float64.

A parameter that selects elements by magnitude has no useful slope: as a function of the density, the weights jump
an element at a time and are flat between the jumps. Its derivative is 0 here. A mask that drops at random has a
useful estimate all the same, straight through (Bengio et al. 2013, arXiv 1308.3432): m(d) ≈ m(d0)·d/d0, as the
mask's expectation goes. Then ∂W/∂d is the sum of the kept elements over d. With `rescale` it is 0, because the
expectation does not depend on the density then.

Elected signs depend on the weights, and an element jumps where its sign flips. Between flips the derivative in
`weight` is exact, but it leaves out the jumps, which may outweigh it over the steps that a search takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evomerge.errors import CandidateError
from evomerge.merging import methods
from evomerge.merging.kernels.arguments import Arguments, named_scalars, starting_at
from evomerge.merging.kernels.blocks import elements
from evomerge.merging.kernels.layouts import shape_along
from evomerge.merging.methods import ByColumn, ByRow, Method, Scalars, TensorInputs, differentiable
from evomerge.models.tensor_names import Place, is_pattern, key_of
from evomerge.recipes.recipe import Recipe

# Parameter -> row -> expert, or "" for all experts together -> derivatives by layer.
Tables = dict[str, dict[str, dict[str, list[float]]]]

# A tensor's name -> (θ0, [θk]), good until the next name is asked for.
Fetch = Callable[[str], tuple[Tensor, list[Tensor]]]

# Elements of a block; autograd's steps are dearer to start than plain ones, and on a GPU dearer still.
_BLOCK, _DEVICE_BLOCK = 1 << 17, 1 << 24

_STEP = float(np.cbrt(np.finfo(np.float64).eps))  # of central differences: rounding and truncation err least there


def refuse(names: Sequence[str]) -> None:
    """Refuses methods that no gradient goes through.

    Raises:
        CandidateError: some have no differentiable parameter; the message names them.
    """
    if flat := [name for name in names if not differentiable(methods.load(name))]:
        raise CandidateError(f"no gradient goes through {' and '.join(flat)}: none of its parameters has a slope")


@dataclass(frozen=True)
class Part:
    """One tensor of a recipe: where it sits, the live tensor, and what its merge takes.

    Gradients reach a `parameter` that is an `nn.Parameter`, and no buffer or carried tensor.
    """

    place: Place
    parameter: Tensor
    method: Method
    inputs: TensorInputs
    arguments: Arguments


@dataclass(frozen=True)
class ScalarGradient:
    """∂F/∂s of one tensor's float scalars, float64, on the device.

    Attributes:
        floats: (n,), in the order of `Arguments.floats`.
        arrays: those of `Arguments.arrays`, each in its shape.
    """

    floats: Tensor
    arrays: tuple[Tensor, ...]

    def __add__(self, other: ScalarGradient) -> ScalarGradient:
        pairs = zip(self.arrays, other.arrays, strict=True)
        return ScalarGradient(self.floats + other.floats, tuple(one + two for one, two in pairs))


def pull_back(part: Part, gradient: Tensor, base: Tensor, experts: Sequence[Tensor]) -> ScalarGradient:
    """⟨∂F/∂W, ∂W/∂s⟩ of one tensor, computed block by block in float32 and summed over blocks in float64.

    Args:
        gradient: ∂F/∂W, of the parameter's shape, any float dtype.
        base, experts: as in `merging.kernels.passes.merge`.
    """
    given = part.arguments
    floats = torch.zeros_like(given.floats, dtype=torch.float64)
    arrays = tuple(torch.zeros_like(array, dtype=torch.float64) for array in given.arrays)
    if not gradient.numel():
        return ScalarGradient(floats, arrays)
    shape = shape_along(gradient.shape, given.along)
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
                s["element"] = elements(first, starting_at(given.ints, start * width)[-1], None)
            merged = part.method.merge(first, rest, s, part.inputs.options)
        # A leaf that only selects elements has no part in the graph: its slope is None.
        slopes = torch.autograd.grad(merged, leaves, slope, allow_unused=True)
        for total, one in zip((floats, *(a[:, mine] for a in arrays)), slopes, strict=True):
            if one is not None:
                total += one
    return ScalarGradient(floats, arrays)


class Gradient:
    """∂F/∂c of one recipe, collected from the passes that go back through the live model inside `hooked`."""

    def __init__(self, recipe: Recipe, parts: Sequence[Part], fetch: Fetch) -> None:
        self._recipe, self._parts, self._fetch = recipe, parts, fetch
        self._sums: dict[int, ScalarGradient] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Makes the parameters require gradients, takes each gradient as it comes and frees it; undoes all
        afterwards."""
        with ExitStack() as undo:
            for number, part in enumerate(self._parts):
                if not isinstance(part.parameter, nn.Parameter):
                    continue
                undo.callback(part.parameter.requires_grad_, part.parameter.requires_grad)
                undo.callback(setattr, part.parameter, "grad", part.parameter.grad)
                part.parameter.grad = None
                part.parameter.requires_grad_(True)
                hooks: Any = part.parameter
                undo.callback(hooks.register_post_accumulate_grad_hook(self._taker(number)).remove)
            yield

    def _taker(self, number: int) -> Callable[[Tensor], None]:
        """The hook of one part's parameter."""

        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            part = self._parts[number]
            base, experts = self._fetch(part.place.name)
            pulled = pull_back(part, gradient, base, experts)
            if gradient.is_cuda:  # the buffers that base and experts lie in are filled anew for the next tensor
                torch.cuda.current_stream(gradient.device).synchronize()
            self._sums[number] = self._sums[number] + pulled if number in self._sums else pulled

        return take

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Counts what is collected inside, unless an exception ends it: then all is as before."""
        before = dict(self._sums)
        try:
            yield
        except BaseException:
            self._sums = before
            for part in self._parts:
                part.parameter.grad = None
            raise

    def tables(self) -> Tables:
        """The derivatives from what was collected so far.

        Returns:
            Parameter -> row -> expert, or "" -> one derivative for each layer: the sum over the tensors that take
            this value by `Recipe.coefficients`. The rows are the patterns of the recipe's own table, and for all
            other tensors their module groups, even groups that a recipe leaves out because their values equal those
            of `*`: their derivatives are not equal. The first and the last layer's derivatives include those of the
            tensors outside the layers, see `Place.layer`.

        Raises:
            CandidateError: a derivative is not finite.
        """
        tables: Tables = {name: {} for name in self._recipe.parameters}
        for number, part in enumerate(self._parts):
            chained = _chain(part, self._sums.get(number))
            for parameter in part.method.PARAMETERS:
                row = tables[parameter.name].setdefault(self._row(parameter.name, part.place), {})
                keys = part.inputs.experts if parameter.per_expert else ("",)
                for key, slope in zip(keys, chained[parameter.name], strict=True):
                    if not np.isfinite(slope):
                        raise CandidateError(f"{part.place.name}: the derivative in {parameter.name} is not finite")
                    row.setdefault(key, [0.0] * self._recipe.layers)[part.place.layer] += slope
        return tables

    def _row(self, parameter: str, place: Place) -> str:
        return key_of(filter(is_pattern, self._recipe.parameters[parameter]), place) or place.module


def _chain(part: Part, pulled: ScalarGradient | None) -> dict[str, list[float]]:
    """∂F/∂c of one tensor's values: parameter -> one derivative for each value.

    pulled: None where no gradient came to the tensor, and all derivatives are 0.
    """
    values = {name: list(own) for name, own in part.inputs.values.items()}
    chained = {name: [0.0] * len(own) for name, own in values.items()}
    if pulled is None:
        return chained
    slopes = np.concatenate([one.flatten().cpu().numpy() for one in (pulled.floats, *pulled.arrays)])
    which = np.flatnonzero(slopes)  # thresholds may be infinite, and have no slope

    def scalars(name: str, at: int, value: float) -> np.ndarray:
        own = tuple(value if k == at else other for k, other in enumerate(values[name]))
        moved = replace(part.inputs, values={**part.inputs.values, name: own})
        return _flat(part.method.scalars(moved))[which]

    for name in differentiable(part.method):
        for at, value in enumerate(values[name]):
            step = _STEP * max(1.0, abs(value))
            rise = scalars(name, at, value + step) - scalars(name, at, value - step)
            chained[name][at] = float(slopes[which] @ rise) / (2.0 * step)
    if part.method.NEEDS_ELEMENT_NUMBERS and "density" in values and not part.inputs.options["rescale"]:
        chained["density"] = _straight_through(part, pulled)
    return chained


def _straight_through(part: Part, pulled: ScalarGradient) -> list[float]:
    """∂F/∂d of masks that drop at random, one for each expert: `factor` is taken to be in proportion to the
    density."""
    named = named_scalars(part.arguments.layout, pulled.floats, part.arguments.ints, pulled.arrays)
    factors = part.method.scalars(part.inputs)["factor"]
    assert isinstance(factors, list)
    slopes = named["factor"].tolist()
    return [
        slope * factor / density
        for slope, factor, density in zip(slopes, factors, part.inputs.values["density"], strict=True)
    ]


def _flat(scalars: Scalars) -> np.ndarray:
    """All float scalars one behind the other, in the order of `ScalarGradient`, float64."""
    floats = [one for one in scalars.values() if isinstance(one, list) and type(one[0]) is not int]
    arrays = [one.array for one in scalars.values() if isinstance(one, ByRow | ByColumn)]
    return np.concatenate([np.asarray(one, dtype=np.float64).ravel() for one in (*floats, *arrays)])
