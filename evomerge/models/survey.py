"""Surveys the checkpoints of an experiment without loading a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge.errors import CheckpointError
from evomerge.models import Progress, tensor_names
from evomerge.models.family import Inputs
from evomerge.models.source import DTYPES, Dtype, Source, Vocabulary


@dataclass(frozen=True)
class Survey:
    """What the checkpoints of an experiment are.

    Attributes:
        base, experts: the sources, with the sha256 of their weights.
        dtype: the dtype of merged models.
        layers: the number of layers of the model.
        parameters: the number of elements of all its parameters, tied ones once.
        largest: the number of elements of its largest parameter.
        nbytes: the size of all checkpoints together, in bytes.
        plain: whether all models are merged as their files have them: no adapter, and no tensor converted.
        names: the names of the live model's parameters.
    """

    base: Source
    experts: dict[str, Source]
    dtype: Dtype
    layers: int
    parameters: int
    largest: int
    nbytes: int
    plain: bool
    names: list[str] = field(repr=False)


def survey_models(
    base: Source,
    experts: Mapping[str, Source],
    dtype: str,
    progress: Progress = lambda text: None,
    vocabulary: Vocabulary | None = None,
) -> Survey:
    """Opens the checkpoints, checks that they fit together and are finite, and hashes their weights.

    Args:
        dtype: `auto` takes the base's.
        progress: called with a line before each step that may take long.
        vocabulary: what to do where vocabularies differ; None refuses models whose vocabularies do.

    Raises:
        CheckpointError: a checkpoint is missing, damaged, or does not fit.
    """
    inputs = Inputs(base, experts, vocabulary)
    if inputs.added:
        inputs.tokenizer()  # refuses ids that it cannot give
    hashed = {}
    for name, source in (("", base), *experts.items()):
        where = f"experts.{name}" if name else "base"
        progress(f"reading {source}")
        inputs.check_contents(name)
        if source.sha256 not in (None, inputs.sha256(name)):
            raise CheckpointError(
                f"{where}: {source} does not hold the weights that its sha256 stands for; they have changed since"
            )
        hashed[name] = source.model_copy(update={"sha256": inputs.sha256(name)})
    chosen = inputs.dtype if dtype == "auto" else dtype
    if chosen not in DTYPES:
        raise CheckpointError(f"base: {base} is {chosen}; give dtype: float32, bfloat16 or float16")
    return Survey(
        base=hashed[""],
        experts={name: hashed[name] for name in experts},
        dtype=chosen,
        layers=tensor_names.layer_count(tensor_names.places(inputs.shapes)),
        parameters=sum(math.prod(shape) for shape in inputs.shapes.values()),
        largest=max(math.prod(shape) for shape in inputs.shapes.values()),
        nbytes=inputs.nbytes,
        plain=inputs.plain,
        names=list(inputs.shapes),
    )
