"""Answers requests with a live model, and does not put a request to it again whose answer is kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch

from evomerge.files.hashing import digest_of_json
from evomerge.scoring.answers import DIGEST, Answers, KeptAnswer
from evomerge.scoring.encoder import Encoder
from evomerge.scoring.forward import admission, head
from evomerge.scoring.forward.budgets import Budget
from evomerge.scoring.forward.packed import Packed
from evomerge.scoring.forward.requests import GenerationRequest, LikelihoodRequest
from evomerge.scoring.generate import Generation, Generator

# Tokens of a forward pass. On a CPU float32 is as fast in small batches, and takes less memory.
_CPU_TOKENS, _CPU_HALF_TOKENS, _DEVICE_TOKENS = 512, 1024, 32768

# Settings of a configuration that do not change what a model computes.
_NAMES = ("_name_or_path", "transformers_version")


@dataclass(frozen=True)
class Answered:
    """Answers to requests.

    Attributes:
        likelihoods: number of a request -> summed log-probability, and whether the answer is the greedy one.
        generations: number of a request -> generated answer.
        tokens: how many were forwarded, prompts and generated ones, without padding.
        padding: how many padding tokens were forwarded besides.
    """

    likelihoods: dict[int, tuple[float, bool]]
    generations: dict[int, Generation]
    tokens: int
    padding: int


class Engine:
    """All requests of a fitness, ready to be put to a live model as often as asked.

    Args:
        batch_tokens: tokens of a batch, padding included; None chooses by device.

    Attributes:
        shared: whether rows that begin alike are forwarded together.
        full_forward: whether whole logits are computed.
    """

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        likelihoods: Sequence[LikelihoodRequest],
        generations: Sequence[GenerationRequest],
        batch_tokens: int | None,
    ) -> None:
        self.likelihoods, self.generations = likelihoods, generations
        tokens = batch_tokens or _batch_tokens(model)
        self._budgets = Budget(tokens), Budget(8 * tokens)
        rows = [len(one.row) for one in likelihoods]
        longest = max([*rows, *(len(one.prompt) + one.max_tokens for one in generations)], default=0)
        texts = (*(one.row for one in likelihoods), *(one.prompt for one in generations))
        if len(text := max(texts, key=len, default=())) > 1:
            admission.check_reads_text(model, text)
        shortcut = longest > 0 and head.shortcut_holds(model, head.finisher(model.config))
        masks = admission.find_masks(model, longest) if shortcut else None
        self._packed = Packed(model, likelihoods, self._budgets[0], masks, shortcut=shortcut)
        self._generator = Generator(model, encoder, generations, self._budgets, masks)
        self.shared = masks is not None
        self.full_forward = longest > 0 and not shortcut
        salt = _salt(model)
        self._likelihood_digests = [_digest(salt, request) for request in likelihoods]
        self._generation_digests = [_digest(salt, request) for request in generations]

    def answer(self, likelihoods: Sequence[int], generations: Sequence[int], answers: Answers | None) -> Answered:
        """The present weights' answers to some requests.

        Args:
            likelihoods, generations: numbers of requests.
            answers: what these weights have answered before; new answers are added.

        Raises:
            CandidateError: memory runs out.
        """
        answers = Answers(None, "") if answers is None else answers
        begun = answers.begin(self._call(likelihoods, generations))
        kept = answers.finished
        pairs, texts = self._pairs(likelihoods, kept), self._texts(generations, kept)
        likelihoods = [at for at in dict.fromkeys(likelihoods) if at not in pairs]
        generations = [at for at in dict.fromkeys(generations) if at not in texts]
        if not likelihoods and not generations:
            return Answered(pairs, texts, 0, 0)
        tokens = padding = 0
        if likelihoods:
            known = self._pairs(likelihoods, begun)
            scored = self._packed.run(likelihoods, known, lambda new: answers.add(self._scored(new)))
            pairs |= scored.answers
            tokens, padding = scored.tokens, scored.padding
        if generations:
            begun_texts = self._texts(generations, begun)
            made = self._generator.run(generations, begun_texts, lambda new: answers.add(self._generated(new)))
            texts |= made.answers
            tokens, padding = tokens + made.tokens, padding + made.padding
        answers.end()
        return Answered(pairs, texts, tokens, padding)

    def _pairs(self, numbers: Iterable[int], kept: dict[bytes, KeptAnswer]) -> dict[int, tuple[float, bool]]:
        """The kept log-likelihoods among some requests, by number."""
        known = _known(numbers, self._likelihood_digests, kept)
        return {at: (one.logprob, one.greedy) for at, one in known.items()}

    def _texts(self, numbers: Iterable[int], kept: dict[bytes, KeptAnswer]) -> dict[int, Generation]:
        """The kept generated answers among some requests, by number; sampled ones are never kept."""
        known = _known(numbers, self._generation_digests, kept)
        return {at: Generation(one.text, one.tokens, one.finished, finite=True) for at, one in known.items()}

    def _call(self, likelihoods: Sequence[int], generations: Sequence[int]) -> bytes:
        """The digest of a call: of its requests, and of how they are batched."""
        parts = [self._likelihood_digests[at] for at in likelihoods]
        parts += [self._generation_digests[at] for at in generations]
        sizes = json.dumps([budget.sizes for budget in self._budgets])
        return hashlib.sha256(sizes.encode() + b"".join(parts)).digest()

    def _scored(self, new: dict[int, tuple[float, bool]]) -> dict[bytes, KeptAnswer]:
        """Log-likelihoods as they are kept, by digest; those that are not finite are left out."""
        return {
            self._likelihood_digests[at]: KeptAnswer(logprob, greedy, "", 0, True)
            for at, (logprob, greedy) in new.items()
            if math.isfinite(logprob)
        }

    def _generated(self, new: dict[int, Generation]) -> dict[bytes, KeptAnswer]:
        """Generated answers as they are kept, by digest; sampled and not finite ones are left out."""
        return {
            self._generation_digests[at]: KeptAnswer(math.nan, False, one.text, one.tokens, one.finished)
            for at, one in new.items()
            if one.finite and not self.generations[at].sampled
        }


def _batch_tokens(model: Any) -> int:
    """How many tokens a batch has by default, by device and dtype."""
    if model.device.type != "cpu":
        return _DEVICE_TOKENS
    return _CPU_TOKENS if model.dtype == torch.float32 else _CPU_HALF_TOKENS


def _known(numbers: Iterable[int], digests: list[bytes], kept: dict[bytes, KeptAnswer]) -> dict[int, KeptAnswer]:
    """The kept answers among some requests, by number."""
    return {at: kept[digests[at]] for at in numbers if digests[at] in kept} if kept else {}


def _salt(model: Any) -> bytes:
    """A digest of a model's configurations, which decide its answers besides its weights."""
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in _NAMES}
    generation = getattr(model, "generation_config", None)
    ways = {} if generation is None else generation.to_diff_dict()
    ways = {name: value for name, value in ways.items() if name not in _NAMES}
    return bytes.fromhex(digest_of_json([config, ways], default=str))


def _digest(salt: bytes, request: LikelihoodRequest | GenerationRequest) -> bytes:
    """The digest of a request to the model of a salt, `DIGEST` bytes."""
    digest = hashlib.sha256(salt)
    for value in astuple(request):
        is_ids = isinstance(value, tuple) and bool(value) and isinstance(value[0], int)
        digest.update(np.array(value, dtype=np.int64).tobytes() if is_ids else repr(value).encode())
        digest.update(b"|")
    return digest.digest()[:DIGEST]
