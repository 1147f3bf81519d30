"""The checkpoints of an experiment as the merger wants them: under the live model's names and in its shapes.

Three kinds of input need tensors that lie in no file: folders whose tensors transformers renames or reshapes when
it loads them (mixtures of experts, old GPT-2), LoRA adapters, and vocabularies that differ. Headers and
configurations alone tell what such an input will be. Its tensors are made once, into overlays in a cache folder.
All tensors that do not change stay views of the original files.

What the files hold is what is merged. Of some of it an expert may have nothing: towers for images and sounds, heads
that predict several tokens, saved buffers, and whatever the model's class does not build. Such an expert stands for
the base there, and what no expert has is kept as the base has it.

An input whose tensors are made is known by the hash of everything that goes into it. So its hash is known before
its tensors are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import CheckpointError
from evomerge.files.hashing import digest_of_json
from evomerge.models import Progress, file_names, fitting, overlays, tensor_names
from evomerge.models.adapters import Adapter
from evomerge.models.agreement import check_agreement
from evomerge.models.checkpoints import CODES, Checkpoint
from evomerge.models.conversion import convert
from evomerge.models.describing import describe_input
from evomerge.models.input import Input, find_input
from evomerge.models.live_weights import LiveWeights, live_weights
from evomerge.models.loading import quiet, skeleton
from evomerge.models.overlays import LazyTensor
from evomerge.models.source import Source, Vocabulary
from evomerge.models.tensor_names import TOWERS, Place
from evomerge.models.token_rows import TokenRows

FOLDER = "inputs"  # the overlays' folder, in the cache


class Inputs:
    """The base and the experts of an experiment, found and described. No weights are read for it.

    Args:
        policy: what to do where vocabularies differ, see `models.vocabulary`.
        where: what names the base in messages.

    Attributes:
        folder: the base's folder.
        skeleton: the live model as the base's config describes it.
        shapes: the shapes of all tensors that are merged: the live model's parameters, tied ones once, and the
            saved buffers and carried tensors that the base and an expert have.
        carried: the base's tensors that the live model does not build.
        kept: the base's tensors that stay: no expert has them, or they are whole numbers.
        left_out: expert -> those of its tensors that the base has not.
        absent: expert -> the tensors for which it stands for the base, because it has none.
        rows: the number of rows that the live model's vocabulary has to be resized to; None if it is right.
        added: the tokens that the base's tokenizer needs besides its own -> their ids.
        notes: what people should know of how the inputs are read and do not agree, a line each.

    Raises:
        CheckpointError: inputs are missing, damaged, or do not fit together, with as many faults as can be found.
    """

    def __init__(
        self,
        base: Source,
        experts: Mapping[str, Source],
        policy: Vocabulary | None = None,
        where: str = "base",
    ) -> None:
        quiet()
        self._models: dict[str, Input] = {}
        self._hashes: dict[str, str] = {}
        sources = {"": base, **experts}

        def find(name: str) -> None:
            self._models[name] = find_input(sources[name], f"experts.{name}" if name else where)

        def describe(name: str) -> None:
            describe_input(self._models[name], self._base, self.skeleton)

        fitting.collect(find, sources)
        self._base = self._models[""]
        self.folder = self._base.folder
        self.skeleton = skeleton(self.folder, where, trust=base.trusted)
        describe("")
        fitting.collect(describe, sorted(experts))
        self._tokens = TokenRows(policy, self._models, self.skeleton)
        self.added, self.rows = self._tokens.added, self._tokens.rows
        self.carried = sorted(self._base.unbuilt)
        self._optional = self._found_in_base()
        self.shapes = {name: self._tokens.resized(name, shape) for name, shape in self._merged().items()}
        self.kept = [name for name in dict.fromkeys((*self._optional, *self.carried)) if name not in self.shapes]
        self.left_out = {name: left for name in sorted(experts) if (left := self._left_out(self._models[name]))}
        self.absent = {name: left for name in sorted(experts) if (left := self._absent(self._models[name]))}
        matched = {name: self._filled(self._tokens.matched(name)) for name in ("", *sorted(experts))}
        fitting.check_fit(matched.pop(""), matched, self.shapes, self.skeleton.rows)
        renumbered = [name for name in matched if self._tokens.changes(name)]
        self.notes = check_agreement(self._models, renumbered)

    def _found_in_base(self) -> dict[str, tuple[int, ...]]:
        """The base's tensors without which an expert may be: saved buffers, towers, and carried tensors."""
        base, skeleton = self._base, self.skeleton
        towers = [place.name for place in tensor_names.places(skeleton.shapes).values() if place.module in TOWERS]
        fractions = [name for name in self.carried if base.dtypes[name] in CODES.values()]
        every = (*towers, *skeleton.buffers, *fractions)
        return {name: base.shapes[name] for name in every if name in base.shapes}

    def _merged(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what is merged: the live model's parameters, and what some expert has of the rest."""
        experts = [model for name, model in self._models.items() if name]

        def had(name: str) -> bool:
            return not experts or any(name in expert.shapes or name in expert.held for expert in experts)

        every = {**self.skeleton.shapes, **self._optional}
        return {name: shape for name, shape in every.items() if name not in self._optional or had(name)}

    def _filled(self, model: Input) -> Input:
        """A model with the base's buffers and carried tensors where it has none of its own."""
        shapes = {name: self._base.shapes[name] for name in self._optional}
        dtypes = {name: self._base.dtypes[name] for name in self._optional}
        return replace(model, shapes={**shapes, **model.shapes}, dtypes={**dtypes, **model.dtypes})

    def _absent(self, model: Input) -> list[str]:
        """The merged tensors that an expert has not."""
        return [name for name in self.shapes if name in self._optional and name not in model.shapes]

    def _left_out(self, model: Input) -> list[str]:
        """The tensors of an expert that the base has not."""
        own = model.unbuilt | set(model.shapes) if model.converts else model.unbuilt
        return sorted(own - self.skeleton.names - set(self.carried))

    def tokenizer(self) -> Any:
        """The live model's tokenizer: the base's, with the tokens that only experts have.

        Raises:
            CheckpointError: there is none, or it does not take the tokens at their ids.
        """
        return self._tokens.extended_tokenizer()

    @property
    def places(self) -> dict[str, Place]:
        """Where each of `shapes` sits."""
        return tensor_names.places(self.shapes, self.carried)

    @property
    def dtype(self) -> str:
        """The base's dtype: the one that most of its elements have."""
        return self._base.held.dtype

    @property
    def plain(self) -> bool:
        """Whether all inputs are merged as their files have them: no adapter, and no tensor converted."""
        return not any(model.adapter or model.converts for model in self._models.values())

    @property
    def nbytes(self) -> int:
        """The size of all inputs' files together, in bytes."""
        return sum(model.held.nbytes for model in self._models.values())

    def made_of(self) -> dict[str, tuple[str, ...]]:
        """Each of `shapes` -> the names in the base's files that it is made of."""
        return file_names.made_of(self._base, self.shapes, self.skeleton.tied)

    # --- identity

    def sha256(self, name: str) -> str:
        """The hash of everything that goes into an expert, or into the base (""). Reads every byte once."""
        if not self._tokens.changes(name):
            return self._weights(name)
        hashes = {part: self._weights(part) for part in self._tokens.depends_on(name)}
        return digest_of_json(["aligned", *self._tokens.content(name, hashes)])

    def _weights(self, name: str) -> str:
        """An input's hash before vocabularies are matched."""
        if name not in self._hashes:
            model = self._models[name]
            content = model.held.sha256
            if model.converts:
                content = digest_of_json(["converted", content, sorted(model.shapes.items())])
            elif model.adapter is not None:
                content = digest_of_json(["folded", self._weights(""), content, model.adapter.settings.content()])
            self._hashes[name] = content
        return self._hashes[name]

    def check_contents(self, name: str) -> None:
        """Checks what headers do not tell of an expert, or of the base (""). Reads every byte once.

        Raises:
            CheckpointError: naming the file and the tensor, which has values that are not finite, or is a copy of a
                tied tensor and differs from it.
        """
        model = self._models[name]
        wanted = [tensor for tensor in self.shapes if tensor in model.held]
        self._check_whole_numbers(name)
        fitting.check_finite(model.held, list(model.held) if model.adapter or model.converts else wanted)
        for copy, tensor in self.skeleton.tied.items():
            both = copy in model.held and tensor in model.held
            if both and not torch.equal(model.held[copy], model.held[tensor]):
                cure = (
                    "the base's config.json ties them, so an expert with a head of its own does not fit"
                    if name
                    else f"{self.folder / 'config.json'} ties them; set tie_word_embeddings: false there"
                )
                raise CheckpointError(
                    f"{model.where}: {copy} in {model.held.file(copy)} differs from {tensor}, but {cure}"
                )

    def _check_whole_numbers(self, name: str) -> None:
        """Checks that an expert's tensors of whole numbers are the base's: they cannot be merged."""
        held, base = self._models[name].held, self._base.held
        unmerged = [tensor for tensor in (*self.skeleton.whole_numbers, *self.carried) if tensor not in self.shapes]
        for tensor in unmerged:
            if tensor in held and tensor in base and not torch.equal(held[tensor], base[tensor]):
                raise CheckpointError(
                    f"{self._models[name].where}: {tensor} in {held.file(tensor)} has whole numbers "
                    f"({held.dtypes[tensor]}), which cannot be merged, and differs from the base's; give experts "
                    "that share it"
                )

    # --- tensors

    def open(
        self, cache: Path, progress: Progress = lambda text: None, *, whole: bool = False
    ) -> tuple[Checkpoint, dict[str, Checkpoint]]:
        """Opens the inputs. Overlays that are missing or damaged are made in the cache folder.

        Args:
            whole: whether to look for damage in every byte of existing overlays, and not in their headers alone.

        Returns:
            The base, and the experts by name.

        Raises:
            CheckpointError: a tensor cannot be made, or is not finite.
            StudyError: the cache folder cannot be written to.
        """

        def overlaid(
            name: str, under: Checkpoint, stage: str, make: Callable[[], Mapping[str, LazyTensor]]
        ) -> Checkpoint:
            model = self._models[name]
            key = model.source.sha256 or self.sha256(name)
            path = cache / FOLDER / f"{key}-{stage}.safetensors"
            if not overlays.is_overlay(path, whole=whole):
                with overlays.alone(path):
                    if not overlays.is_overlay(path, whole=True):
                        progress(f"making the {stage} tensors of {model.where}")
                        overlays.write_overlay(path, make(), model.where)
            return under.covered(path, model.folder, model.where, key)

        opened: dict[str, Checkpoint] = {}
        for name, model in self._models.items():
            if model.converts:
                opened[name] = overlaid(name, model.held, "converted", partial(convert, model, self.skeleton))
            elif model.adapter is not None:
                opened[name] = overlaid(name, opened[""], "folded", partial(_fold, model.adapter, opened[""]))
            else:
                opened[name] = Checkpoint(model.folder, model.where, model.source.sha256)
        before = dict(opened)
        for name in opened:
            if self._tokens.changes(name):
                opened[name] = overlaid(name, before[name], "aligned", partial(self._tokens.remade, name, before))
        base = opened.pop("")
        return base, {name: expert.filled(base, self._optional) for name, expert in opened.items()}

    def live_weights(self, model: Any, base: Checkpoint, dtype: str) -> LiveWeights:
        """The weights of a live model that holds the base.

        Args:
            base: the base, opened.
            dtype: that of merged models.
        """
        return live_weights(model, base, self.shapes, self.carried, getattr(torch, dtype))


def _fold(adapter: Adapter, base: Checkpoint) -> dict[str, LazyTensor]:
    """The tensors that an adapter changes."""
    return {
        name: LazyTensor(base[name].dtype, shape, partial(_folded, adapter, name, base))
        for name, shape in adapter.shapes.items()
    }


def _folded(adapter: Adapter, name: str, base: Checkpoint) -> torch.Tensor:
    return adapter.apply(name, base[name])
