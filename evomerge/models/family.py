"""The checkpoints of an experiment as the merger wants them: under the live model's names and in its shapes.

Three kinds of input need tensors that lie in no file: folders whose names transformers changes when it loads them
(mixtures of experts, old GPT-2), LoRA adapters, and vocabularies that differ. What such an input is made of is read
from headers and configurations alone; the tensors themselves are made once, into overlays in a cache folder, and
all that did not change stays a view of the original file.

A made input is known by the hash of all that goes into it, so the hash is there before the tensors are.
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
from evomerge.models import adapters, checkpoints, overlays, vocabulary
from evomerge.models.adapters import Adapter
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.conversion import Input, convert, converted_shapes
from evomerge.models.loading import Skeleton, has_tokenizer, load_tokenizer, quiet, skeleton
from evomerge.models.overlays import LazyTensor
from evomerge.models.source import Source, Vocabulary

Progress = Callable[[str], None]

FOLDER = "inputs"  # of the overlays, in the cache


def _find(source: Source, where: str) -> Input:
    folder = checkpoints.locate(source, where)
    single = None
    if (
        where.startswith("experts.")
        and not (folder / checkpoints.INDEX).is_file()
        and not (folder / checkpoints.SINGLE).is_file()
    ):
        single = adapters.WEIGHTS if (folder / adapters.CONFIG).is_file() else None
        if single and not (folder / single).is_file() and (folder / "adapter_model.bin").is_file():
            raise CheckpointError(
                f"{where}: {folder} is an adapter with pickled weights, and evomerge reads none; save it again "
                "with a recent peft"
            )
    held = Checkpoint(folder, where, single=single)
    return Input(where, folder, source, held, held.shapes, held.dtypes)


def _describe(model: Input, base: Input, frame: Skeleton) -> None:
    """Fills in what an input will have.

    Raises:
        CheckpointError: it cannot be brought under the live model's names.
    """
    if model.held.file(next(iter(model.held))).name == adapters.WEIGHTS:
        model.adapter = Adapter(
            model.held,
            adapters.read(model.folder, model.where),
            frame.shapes,
            rows=frame.rows,
            conv1d=frame.conv1d,
            tied=frame.tied,
            where=model.where,
            path=model.folder / adapters.WEIGHTS,
        )
        model.shapes, model.dtypes = {**base.shapes, **model.adapter.shapes}, base.dtypes
    elif any(name not in model.shapes for name in frame.shapes):
        model.shapes = converted_shapes(model, frame)
        model.dtypes = {**model.dtypes, **{n: model.held.dtype for n in model.shapes if n not in model.dtypes}}
        model.converts = True


def _hash(*content: Any) -> str:
    return digest_of_json(content)


# --- all inputs of an experiment ---------------------------------------------------------------------------


class Inputs:
    """The base and the experts of an experiment, found and described. No weights are read for it.

    Args:
        policy: what to do where vocabularies differ, see `models.vocabulary`.
        where: what names the base in messages.

    Attributes:
        folder: the base's.
        shapes: the live model's parameters, tied ones once.
        rows: what the live model's vocabulary has to be resized to; None if it is right.
        added: the tokens that the base's tokenizer needs besides its own -> their ids.

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
        self._policy = policy
        self._models: dict[str, Input] = {}
        self._hashes: dict[str, str] = {}
        sources = {"": base, **experts}

        def find(name: str) -> None:
            self._models[name] = _find(sources[name], f"experts.{name}" if name else where)

        def describe(name: str) -> None:
            _describe(self._models[name], self._models[""], self.skeleton)

        _collect(find, sources)
        self._base = self._models[""]
        self._experts = {name: self._models[name] for name in sorted(experts)}
        self.folder = self._base.folder
        self.skeleton = skeleton(self.folder, where)
        describe("")
        _collect(describe, self._experts)
        self._alignment = self._align() if policy else None
        self.added = self._alignment.added if self._alignment else {}
        self.rows = self._alignment.rows if self.added and self._alignment else None
        self.shapes = {name: self._resized(name, shape) for name, shape in self.skeleton.shapes.items()}
        described = {name: self._after(name) for name in self._models}
        checkpoints.check_fit(
            described[""], {name: described[name] for name in self._experts}, self.shapes, self.skeleton.rows
        )

    # --- vocabularies

    def _align(self) -> vocabulary.Alignment:
        assert self._policy is not None
        self._tokenizers = {name: self._own_tokenizer(name) for name in self._models}
        holdings = {
            name: vocabulary.Holding(tokenizer.get_vocab(), self._rows_of(self._models[name]))
            for name, tokenizer in self._tokenizers.items()
        }
        return vocabulary.align(self._policy, holdings[""], {name: holdings[name] for name in self._experts})

    def _rows_of(self, model: Input) -> int:
        counts = {tensor: model.shapes[tensor][0] for tensor in self.skeleton.rows}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{tensor} has {count}" for tensor, count in counts.items())
            raise CheckpointError(f"{model.where}: the rows in {model.folder} cannot be matched by token: {shown}")
        return next(iter(counts.values()))

    def _own_tokenizer(self, name: str) -> Any:
        model = self._models[name]
        # An adapter without a tokenizer of its own was trained with the base's.
        own = model.adapter is None or has_tokenizer(model.folder)
        try:
            return load_tokenizer(model.folder if own else self.folder)
        except CheckpointError as error:
            raise CheckpointError(
                f"{model.where}: {error}; `vocabulary: {self._policy}` matches rows by it"
            ) from error

    def _aligned(self, name: str) -> bool:
        return self._alignment is not None and name in self._alignment.sources

    def _resized(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.rows, *shape[1:]) if self.rows is not None and name in self.skeleton.rows else shape

    def _after(self, name: str) -> Input:
        """An input as it is once vocabularies are matched."""
        model = self._models[name]
        if not self._aligned(name) or self._alignment is None:
            return model
        rows = self._alignment.rows
        shapes = {
            tensor: (rows, *shape[1:]) if tensor in self.skeleton.rows else shape
            for tensor, shape in model.shapes.items()
        }
        return replace(model, shapes=shapes)

    def tokenizer(self) -> Any:
        """The live model's tokenizer: the base's, with the tokens that only experts have.

        Raises:
            CheckpointError: there is none, or it does not take the tokens at their ids.
        """
        tokenizer = load_tokenizer(self.folder)
        if not self.added:
            return tokenizer
        kinds = {
            str(token): token
            for name in reversed(self._experts)
            for token in self._tokenizers[name].added_tokens_decoder.values()
        }
        tokenizer.add_tokens([kinds.get(token, token) for token in self.added])
        for token, wanted in self.added.items():
            got = tokenizer.convert_tokens_to_ids(token)
            if got != wanted:
                raise CheckpointError(
                    f"vocabulary: the tokenizer of {self.folder} takes {token!r} at id {got} and not at {wanted}; "
                    "give `vocabulary: base`"
                )
        return tokenizer

    # --- identity

    def _weights(self, name: str) -> str:
        """An input's hash before vocabularies are matched."""
        if name not in self._hashes:
            model = self._models[name]
            found = model.held.sha256
            if model.converts:
                found = _hash("converted", found, sorted(model.shapes.items()))
            elif model.adapter is not None:
                found = _hash("folded", self._weights(""), found, model.adapter.settings.content())
            self._hashes[name] = found
        return self._hashes[name]

    def sha256(self, name: str) -> str:
        """The hash of all that goes into an expert, or into the base (""). Reads every byte once."""
        if not self._aligned(name) or self._alignment is None:
            return self._weights(name)
        # Rows of new tokens depend on all experts, others on the base and on the model itself.
        parts = ["", *self._experts] if self.added else ["", name]
        sources = self._alignment.sources
        content = [(self._weights(part), sources[part].tolist() if part in sources else None) for part in parts]
        return _hash("aligned", parts.index(name), content, self._alignment.rows, list(self.added))

    def check_contents(self, name: str) -> None:
        """Checks what headers do not tell of an expert, or of the base (""). Reads every byte once.

        Raises:
            CheckpointError: naming the file and the tensor with values that are not finite, or that is a copy of a
                tied one and differs from it.
        """
        model = self._models[name]
        wanted = [tensor for tensor in self.skeleton.shapes if tensor in model.held]
        checkpoints.check_finite(model.held, list(model.held) if model.adapter or model.converts else wanted)
        for copy, tensor in self.skeleton.tied.items():
            if (
                copy in model.held
                and tensor in model.held
                and not torch.equal(model.held[copy], model.held[tensor])
            ):
                cure = (
                    "the base's config.json ties them, so an expert with a head of its own does not fit"
                    if name
                    else f"{self.folder / 'config.json'} ties them; set tie_word_embeddings: false there"
                )
                raise CheckpointError(
                    f"{model.where}: {copy} in {model.held.file(copy)} differs from {tensor}, but {cure}"
                )

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
        """Bytes of all inputs' files together."""
        return sum(model.held.nbytes for model in self._models.values())

    # --- tensors

    def open(
        self, cache: Path, progress: Progress = lambda text: None, *, whole: bool = False
    ) -> tuple[Checkpoint, dict[str, Checkpoint]]:
        """Opens the inputs, making in the cache folder what has to be made and is not there or is damaged.

        Args:
            whole: whether to look for damage in every byte of what was made before, and not in its headers alone.

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
                opened[name] = overlaid(name, model.held, "converted", partial(convert, model))
            elif model.adapter is not None:
                opened[name] = overlaid(name, opened[""], "folded", partial(_fold, model.adapter, opened[""]))
            else:
                opened[name] = Checkpoint(model.folder, model.where, model.source.sha256)
        before = dict(opened)
        for name in opened:
            if self._aligned(name):
                opened[name] = overlaid(name, before[name], "aligned", partial(self._realign, name, before))
        return opened.pop(""), opened

    def _realign(self, name: str, opened: Mapping[str, Checkpoint]) -> dict[str, LazyTensor]:
        assert self._alignment is not None
        found = {}
        for tensor in self.skeleton.rows:
            base = opened[""][tensor]
            experts = {expert: opened[expert][tensor] for expert in self._experts}
            dtype = torch.promote_types(base.dtype, experts[name].dtype) if name else base.dtype
            make = partial(vocabulary.realign, name, self._alignment, base, experts)
            found[tensor] = LazyTensor(dtype, (self._alignment.rows, *base.shape[1:]), make)
        return found


def _fold(adapter: Adapter, base: Checkpoint) -> dict[str, LazyTensor]:
    return {
        name: LazyTensor(base[name].dtype, shape, partial(_folded, adapter, name, base))
        for name, shape in adapter.shapes.items()
    }


def _folded(adapter: Adapter, name: str, base: Checkpoint) -> torch.Tensor:
    return adapter.apply(name, base[name])


def _collect(do: Callable[[str], None], names: Mapping[str, Any]) -> None:
    """Does something for each name, and raises all faults at once."""
    faults = []
    for name in names:
        try:
            do(name)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError("\n".join(faults))
