"""The rows of a family's embeddings and heads, matched by token where the models' vocabularies differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from evomerge.errors import CheckpointError
from evomerge.models import vocabulary
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.input import Input
from evomerge.models.loading import Skeleton, has_tokenizer, load_tokenizer
from evomerge.models.overlays import LazyTensor
from evomerge.models.source import Vocabulary


class TokenRows:
    """Where the rows of each model of a family go.

    Args:
        policy: what to do where vocabularies differ, see `models.vocabulary`. None changes no row.
        models: the base (""), and the experts by name.
        skeleton: the live model's, as the base's config describes it.

    Attributes:
        added: the tokens that the base's tokenizer needs besides its own -> their ids.
        rows: the number of rows that the live model's vocabulary has to be resized to; None if it is right.

    Raises:
        CheckpointError: a model has no tokenizer, or its tensors disagree on the number of rows.
    """

    def __init__(self, policy: Vocabulary | None, models: Mapping[str, Input], skeleton: Skeleton) -> None:
        self._policy, self._models, self._per_token = policy, models, skeleton.rows
        self._experts = sorted(name for name in models if name)
        self._tokenizers: dict[str, Any] = {}
        self._alignment = vocabulary.Alignment(0, {}, {}) if policy is None else self._align(policy)
        self.added = self._alignment.added
        self.rows = self._alignment.rows if self.added else None

    def _align(self, policy: Vocabulary) -> vocabulary.Alignment:
        """Reads all tokenizers, and matches the models' rows by token."""
        self._tokenizers = {name: self._tokenizer(model) for name, model in self._models.items()}
        holdings = {
            name: vocabulary.Holding(self._tokenizers[name].get_vocab(), self._count(model))
            for name, model in self._models.items()
        }
        return vocabulary.align(policy, holdings[""], {name: holdings[name] for name in self._experts})

    def _count(self, model: Input) -> int:
        """The number of rows that a model has."""
        counts = {tensor: model.shapes[tensor][0] for tensor in self._per_token}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{tensor} has {count}" for tensor, count in counts.items())
            raise CheckpointError(f"{model.where}: the rows in {model.folder} cannot be matched by token: {shown}")
        return next(iter(counts.values()))

    def _tokenizer(self, model: Input) -> Any:
        """A model's own tokenizer. An adapter without one was trained with the base's."""
        own = model.adapter is None or has_tokenizer(model.folder)
        try:
            teller = model if own else self._models[""]
            return load_tokenizer(teller.folder, trust=teller.source.trusted)
        except CheckpointError as error:
            raise CheckpointError(
                f"{model.where}: {error}; `vocabulary: {self._policy}` matches rows by it"
            ) from error

    def changes(self, name: str) -> bool:
        """Whether any row of a model moves."""
        return name in self._alignment.sources

    def resized(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the live model's parameter of that name, given its shape in the base's config."""
        return (self.rows, *shape[1:]) if self.rows is not None and name in self._per_token else shape

    def matched(self, name: str) -> Input:
        """A model as it is once vocabularies are matched."""
        model = self._models[name]
        if not self.changes(name):
            return model
        shapes = {
            tensor: (self._alignment.rows, *shape[1:]) if tensor in self._per_token else shape
            for tensor, shape in model.shapes.items()
        }
        return replace(model, shapes=shapes)

    def extended_tokenizer(self) -> Any:
        """The live model's tokenizer: the base's, with the tokens that only experts have.

        Raises:
            CheckpointError: there is none, or it does not take the tokens at their ids.
        """
        base = self._models[""]
        folder, tokenizer = base.folder, load_tokenizer(base.folder, trust=base.source.trusted)
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
                    f"vocabulary: the tokenizer of {folder} takes {token!r} at id {got} and not at {wanted}; "
                    "give `vocabulary: base`"
                )
        return tokenizer

    def depends_on(self, name: str) -> list[str]:
        """The models whose rows go into a model's. Rows of new tokens depend on all experts."""
        return ["", *self._experts] if self.added else ["", name]

    def content(self, name: str, hashes: Mapping[str, str]) -> list[Any]:
        """Plain values that decide a model's matched rows.

        Args:
            hashes: those of the weights of the models that `depends_on` names.
        """
        parts, sources = self.depends_on(name), self._alignment.sources
        content = [(hashes[part], sources[part].tolist() if part in sources else None) for part in parts]
        return [parts.index(name), content, self._alignment.rows, list(self.added)]

    def remade(self, name: str, opened: Mapping[str, Checkpoint]) -> dict[str, LazyTensor]:
        """The tensors of a model whose rows change.

        Args:
            opened: all models, before vocabularies are matched.
        """
        tensors = {}
        for tensor in self._per_token:
            base = opened[""][tensor]
            experts = {expert: opened[expert][tensor] for expert in self._experts}
            dtype = torch.promote_types(base.dtype, experts[name].dtype) if name else base.dtype
            make = partial(vocabulary.realign, name, self._alignment, base, experts)
            tensors[tensor] = LazyTensor(dtype, (self._alignment.rows, *base.shape[1:]), make)
        return tensors
