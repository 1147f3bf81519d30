"""Answers in free text, with lm-eval's stop strings, lengths and truncation.

Greedy answers, nearly all there are, come from `decode`; others from `model.generate`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.models.utils import postprocess_generated_text
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from evomerge.errors import CandidateError, one_line
from evomerge.scoring.encoder import Encoder
from evomerge.scoring.forward.budgets import Budget, Recent
from evomerge.scoring.forward.decode import Decoder, Reading, prepare
from evomerge.scoring.forward.masks import TreeMasks
from evomerge.scoring.forward.requests import GenerationRequest

# Keywords that change nothing unless answers are sampled.
_SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"})


# What a model's own generation settings must be for the most likely token to be taken each time.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "guidance_scale": (None, 1.0),
    "penalty_alpha": (None, 0.0),
    **dict.fromkeys(
        (
            "bad_words_ids",
            "sequence_bias",
            "suppress_tokens",
            "begin_suppress_tokens",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "exponential_decay_length_penalty",
            "watermarking_config",
            "stop_strings",
            "max_time",
            "dola_layers",
            "prompt_lookup_num_tokens",
        ),
        (None,),
    ),
}


def _plain(config: Any) -> bool:
    return all(getattr(config, name, None) in allowed for name, allowed in _PLAIN.items())


@dataclass(frozen=True)
class Generation:
    """One answer.

    text: up to the first stop string. tokens: how many were generated. finished: whether a stop string or an
    end-of-text token ended it, rather than its greatest length. finite: whether all its logits were numbers.
    """

    text: str
    tokens: int
    finished: bool
    finite: bool


class _Endings:
    """Says where answers end: at one of the stop strings, or at an end-of-text token.

    Most tokens cannot end a stop string, and cost no look at the text.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str], eos: int | list[int] | None, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._until = until
        self._window = 2 + max(len(tokenizer.encode(stop, add_special_tokens=False)) for stop in until)
        self._eos = {eos} if isinstance(eos, int) else set(eos or ())
        ends = {stop[-1] for stop in until if stop}
        # A space may be lost where a token is decoded alone, and a letter of several bytes may take several tokens.
        self._any = "" in until or any(end == " " or not end.isascii() for end in ends)
        texts = [] if self._any else tokenizer.batch_decode([[token] for token in range(vocabulary)])
        self._may_end = {token for token, text in enumerate(texts) if not ends.isdisjoint(text)}

    def __call__(self, answer: list[int]) -> bool:
        """Whether an answer ends with its latest token."""
        if answer[-1] in self._eos:
            return True
        if not self._any and answer[-1] not in self._may_end:
            return False
        tail = self._tokenizer.decode(answer[-self._window :])
        return any(stop in tail for stop in self._until)


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Ends each row where its answer ends.

    lm-eval runs a batch until all its rows have stopped; ending each row alone makes an answer what it is in a
    batch of one.
    """

    def __init__(self, ending: _Endings, start: int) -> None:
        self._ending = ending
        self._start = start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        answers = input_ids[:, self._start :].tolist()
        return torch.tensor([self._ending(answer) for answer in answers], device=input_ids.device)


class _Watch(LogitsProcessor):  # type: ignore[misc]
    """Notes the rows whose logits are not all numbers, without waiting for the device."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.bad = torch.zeros(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        finite = torch.isfinite(scores.max(dim=-1).values)
        self.bad |= ~finite.view(len(self.bad), -1).all(dim=-1)  # a row may have several beams
        return scores


@dataclass(frozen=True)
class Generated:
    """Answers by number of their request. tokens: forwarded, prompts and answers. padding: besides."""

    answers: dict[int, Generation]
    tokens: int
    padding: int


class Generator:
    """All generation requests of a fitness, tokenized; any choice of them is answered as often as asked.

    budgets: of a forward pass over prompts, and of the keys that a batch of answers may hold.
    masks: how the model is told what sees what; None leaves all to `model.generate`.
    """

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        requests: Sequence[GenerationRequest],
        budgets: tuple[Budget, Budget],
        masks: TreeMasks | None,
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._requests = requests
        self._budgets = budgets
        self._masks = masks if requests and _plain(model.generation_config) else None
        self._endings: dict[tuple[str, ...], _Endings] = {}
        self._readings: Recent[Reading] = Recent()

    @torch.no_grad()
    def run(
        self,
        chosen: Sequence[int],
        known: dict[int, Generation] | None = None,
        report: Callable[[dict[int, Generation]], None] = lambda found: None,
    ) -> Generated:
        """Answers the chosen requests with the model's present weights.

        Equal requests are answered once unless they sample. Requests share a batch when stop strings, lengths and
        options are equal.

        known: answers that an earlier call with the same choice reported before it was interrupted. Batches that
            are known whole are skipped; the others are what they would have been.
        report: is given answers as they are found.

        Raises:
            CandidateError: memory runs out even for a small batch.
        """
        first: dict[GenerationRequest, int] = {}
        same = {at: at if (one := self._requests[at]).sampled else first.setdefault(one, at) for at in chosen}
        groups: dict[tuple[Any, ...], list[int]] = {}
        for at in dict.fromkeys(same.values()):
            request = self._requests[at]
            groups.setdefault((request.until, request.max_tokens, request.options), []).append(at)
        found: dict[int, Generation] = {}
        tokens = padding = 0
        for rows in groups.values():
            answer = self._decode if self._masks is not None and self._is_greedy(rows[0]) else self._generate
            begun = {at: known[at] for at in rows if at in known} if known else {}
            answers, forwarded, padded = answer(rows, begun, report)
            found |= answers
            tokens, padding = tokens + forwarded, padding + padded
        return Generated({at: found[one] for at, one in same.items()}, tokens, padding)

    def _is_greedy(self, at: int) -> bool:
        options = _options(self._requests[at])
        return options.pop("do_sample", None) is False and options.keys() <= _SAMPLING

    def _decode(
        self, rows: list[int], known: dict[int, Generation], report: Callable[[dict[int, Generation]], None]
    ) -> tuple[dict[int, Generation], int, int]:
        """Greedy answers by our own loop."""
        assert self._masks is not None
        request = self._requests[rows[0]]
        ending = self._ending(request.until)
        found = dict(known)
        tokens = padding = 0

        def done(number: int, answer: list[int], finite: bool) -> None:
            found[rows[number]] = self._generation(request, answer, finite)
            report({rows[number]: found[rows[number]]})

        while True:
            decoder = Decoder(self._model, self._masks)
            sizes = [budget.sizes for budget in self._budgets]
            reading = self._readings.get((tuple(rows), *sizes), lambda: self._read(rows))
            try:
                decoder.run(
                    reading,
                    lambda numbers, answers: [ending(answer) for answer in answers],
                    lambda number: rows[number] in found,
                    done,
                )
                return found, tokens + decoder.tokens, padding + decoder.padding
            except torch.OutOfMemoryError:
                size, budget = decoder.size, self._budgets[0 if decoder.reading else 1]
            tokens, padding = tokens + decoder.tokens, padding + decoder.padding
            # Out of the handler, whose exception holds on to the batch's memory.
            del decoder, reading
            self._readings.clear()
            budget.shrink(size)

    def _read(self, rows: list[int]) -> Reading:
        prompts = [np.array(self._requests[at].prompt, dtype=np.int64) for at in rows]
        reads, answers = self._budgets
        return prepare(self._model, prompts, self._requests[rows[0]].max_tokens, reads, answers.tokens)

    def _generation(self, request: GenerationRequest, answer: list[int], finite: bool) -> Generation:
        text = postprocess_generated_text(self._encoder.tok_decode(answer), list(request.until), None)
        return Generation(text, len(answer), self._ending(request.until)(answer), finite)

    def _ending(self, until: tuple[str, ...]) -> _Endings:
        if until not in self._endings:
            vocabulary = self._model.get_input_embeddings().weight.shape[0]
            eos = self._model.generation_config.eos_token_id
            self._endings[until] = _Endings(self._encoder.tokenizer, until, eos, vocabulary)
        return self._endings[until]

    def _generate(
        self, rows: list[int], known: dict[int, Generation], report: Callable[[dict[int, Generation]], None]
    ) -> tuple[dict[int, Generation], int, int]:
        """Answers by `model.generate`: samples, beams, penalties, and models that cannot be told what to see."""
        found = dict(known)
        padding = 0
        for batch in self._budgets[1].batches(rows, self._length):
            if all(at in found for at in batch):
                continue
            for part in self._budgets[1].halving(batch, self._length(batch[0]), self._answer):
                found |= part
                report(part)
                longest = max(len(self._requests[at].prompt) for at in part)
                padding += sum(longest - len(self._requests[at].prompt) for at in part)
        made = [at for at in found if at not in known]
        return found, sum(len(self._requests[at].prompt) + found[at].tokens for at in made), padding

    def _length(self, at: int) -> int:
        return len(self._requests[at].prompt) + self._requests[at].max_tokens

    def _answer(self, rows: list[int]) -> dict[int, Generation]:
        requests = [self._requests[at] for at in rows]
        tokenizer, device = self._encoder.tokenizer, self._model.device
        start = max(len(request.prompt) for request in requests)
        ids = torch.full((len(rows), start), tokenizer.pad_token_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for line, request in enumerate(requests):
            ids[line, start - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[line, start - len(request.prompt) :] = 1
        ending = self._ending(requests[0].until)
        watch = _Watch(len(rows), device)
        keywords = {"max_length": start + requests[0].max_tokens, **_options(requests[0])}
        try:
            output = self._model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                stopping_criteria=[_Stop(ending, start)],
                logits_processor=[watch],
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
                **keywords | {"return_dict_in_generate": False},
            ).tolist()
        except (TypeError, ValueError) as error:  # options that it does not know, or that contradict each other
            raise CandidateError(f"generation_kwargs: {one_line(error)}") from error
        bad = watch.bad.tolist()
        answers = {}
        for line, (at, request) in enumerate(zip(rows, requests, strict=True)):
            whole = output[line][start:]
            ends = (end for end in range(1, len(whole) + 1) if ending(whole[:end]))
            answers[at] = self._generation(request, whole[: next(ends, None)], not bad[line])
        return answers


def _options(request: GenerationRequest) -> dict[str, Any]:
    """Keywords of `generate` for sampling and temperature, as lm-eval's HFLM passes them."""
    options: dict[str, Any] = json.loads(request.options)
    options.setdefault("temperature", 0.0)
    if options["temperature"] == 0.0 and options.get("do_sample") is None:
        options["do_sample"] = False
    if options.get("do_sample") is False and options["temperature"] == 0.0:
        del options["temperature"]
    return options
