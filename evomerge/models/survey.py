"""Surveys the checkpoints of an experiment without loading a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge.errors import CheckpointError
from evomerge.models import Progress, tensor_names
from evomerge.models.family import Inputs
from evomerge.models.source import DTYPES, Dtype, Source, Vocabulary
from evomerge.models.tensor_names import TOWERS, Place, some


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
        places: tensor that is merged -> where it sits.
        made_of: tensor that is merged -> the names in the base's files that it is made of.
        unmerged: names of the base's tensors that are not merged under these names -> why, in words.
        carried: the base's tensors that the live model does not build.
        kept: the base's tensors that stay: no expert has them, or they are whole numbers.
        left_out: expert -> those of its tensors that the base has not.
        absent: expert -> the tensors for which it stands for the base, because it has none.
        notes: what people should know of how the checkpoints are read and do not agree, a line each.
    """

    base: Source
    experts: dict[str, Source]
    dtype: Dtype
    layers: int
    parameters: int
    largest: int
    nbytes: int
    plain: bool
    places: dict[str, Place] = field(repr=False)
    made_of: dict[str, tuple[str, ...]] = field(repr=False)
    unmerged: dict[str, str] = field(repr=False)
    carried: list[str] = field(default_factory=list, repr=False)
    kept: list[str] = field(default_factory=list, repr=False)
    left_out: dict[str, list[str]] = field(default_factory=dict, repr=False)
    absent: dict[str, list[str]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of all tensors that are merged."""
        return list(self.places)

    def told(self) -> dict[str, str]:
        """What is merged, what is kept as the base has it, and what of the experts is left out, in words."""
        merged = Counter(place.module if place.module in TOWERS else "text" for place in self.places.values())
        told = {"merged": f"{len(self.places)} tensors"}
        if set(merged) != {"text"}:
            told["merged"] += f" ({', '.join(f'{merged[one]} {one}' for one in ('text', *TOWERS) if merged[one])})"
        if self.kept:
            told["kept_from_the_base"] = f"{len(self.kept)} tensors: {some(self.kept)}"
        if self.absent:
            lacking = (f"{name}'s {len(tensors)} ({some(tensors)})" for name, tensors in self.absent.items())
            told["taken_from_the_base"] = f"what an expert has not: {'; '.join(lacking)}"
        if self.left_out:
            left = (f"{name}'s {some(tensors)}" for name, tensors in self.left_out.items())
            told["left_out"] = f"what the base has not: {'; '.join(left)}"
        return told


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
        layers=tensor_names.layer_count(inputs.places),
        parameters=sum(math.prod(shape) for shape in inputs.shapes.values()),
        largest=max(math.prod(shape) for shape in inputs.shapes.values()),
        nbytes=inputs.nbytes,
        plain=inputs.plain,
        places=inputs.places,
        made_of=inputs.made_of(),
        unmerged=_unmerged(inputs),
        carried=inputs.carried,
        kept=inputs.kept,
        left_out=inputs.left_out,
        absent=inputs.absent,
        notes=inputs.notes,
    )


def _unmerged(inputs: Inputs) -> dict[str, str]:
    """Names of the base's tensors that are not merged under these names -> why, in words."""
    live = inputs.skeleton
    kept = dict.fromkeys((*live.shapes, *live.buffers, *inputs.carried), "it is kept as the base has it")
    tied = {second: f"it is tied to {first}" for second, first in live.tied.items()}
    return {name: why for name, why in {**kept, **tied}.items() if name not in inputs.shapes}
