"""Answers in free text: batched `model.generate` with lm-eval's stop strings, lengths and truncation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.utils import postprocess_generated_text
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from evomerge.scoring.encoder import Encoder, GenerationRequest
from evomerge.scoring.memory import Budget


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


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Ends each row where one of the stop strings appears among its latest tokens.

    lm-eval runs a batch until all its rows have stopped; ending each row alone makes an answer what it is in a
    batch of one.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str], start: int, rows: int) -> None:
        self._tokenizer = tokenizer
        self._until = until
        self._start = start
        self._window = 2 + max(len(tokenizer.encode(stop, add_special_tokens=False)) for stop in until)
        self.ends = [0] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        length = input_ids.shape[1]
        tails = self._tokenizer.batch_decode(input_ids[:, max(self._start, length - self._window) :])
        for row, tail in enumerate(tails):
            if not self.ends[row] and any(stop in tail for stop in self._until):
                self.ends[row] = length
        return torch.tensor([end > 0 for end in self.ends], device=input_ids.device)


class _Watch(LogitsProcessor):  # type: ignore[misc]
    """Notes the rows whose logits are not all numbers, without waiting for the device."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.bad = torch.zeros(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.bad |= ~torch.isfinite(scores.max(dim=-1).values)
        return scores


class Generator:
    """All generation requests of a fitness, tokenized; any choice of them is answered as often as asked."""

    def __init__(self, model: Any, encoder: Encoder, requests: Sequence[GenerationRequest], budget: Budget) -> None:
        self._model = model
        self._encoder = encoder
        self._requests = requests
        self._budget = budget

    @torch.no_grad()
    def run(self, chosen: Sequence[int]) -> tuple[list[Generation], int]:
        """Answers the chosen requests, in their order; also how many tokens were forwarded.

        Equal requests are answered once unless they sample. Requests share a batch when stop strings, lengths
        and options are equal.

        Raises:
            CandidateError: one prompt alone runs out of memory.
        """
        first: dict[GenerationRequest, int] = {}
        same = [first.setdefault(self._requests[at], at) for at in chosen]
        if any(json.loads(self._requests[at].options).get("do_sample") for at in chosen):
            same = list(chosen)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for at in dict.fromkeys(same):
            request = self._requests[at]
            groups.setdefault((request.until, request.max_tokens, request.options), []).append(at)
        answers: dict[int, Generation] = {}
        for rows in groups.values():
            for batch in self._budget.batches(rows, self._length):
                for part in self._budget.halving(batch, self._length(batch[0]), self._answer):
                    answers.update(part)
        tokens = sum(len(self._requests[at].prompt) + answer.tokens for at, answer in answers.items())
        return [answers[at] for at in same], tokens

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
        stop = _Stop(tokenizer, requests[0].until, start, len(rows))
        watch = _Watch(len(rows), device)
        keywords = {"max_length": start + requests[0].max_tokens, **_options(requests[0])}
        output = self._model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            stopping_criteria=[stop],
            logits_processor=[watch],
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            **keywords,
        ).tolist()
        bad = watch.bad.tolist()
        answers = {}
        for line, (at, request) in enumerate(zip(rows, requests, strict=True)):
            end = _end(output[line], start, stop.ends[line], self._model.generation_config.eos_token_id)
            answer = output[line][start : end or None]
            text = postprocess_generated_text(self._encoder.tok_decode(answer), list(request.until), None)
            answers[at] = Generation(text, len(answer), end > 0, not bad[line])
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


def _end(output: list[int], start: int, stopped: int, eos: int | list[int] | None) -> int:
    """Where a row's answer ends, exclusive: at its stop string or its first end-of-text token; 0 if at neither."""
    marks = {eos} if isinstance(eos, int) else set(eos or ())
    ends = [stopped] if stopped else []
    ends += [at + 1 for at in range(start, len(output)) if output[at] in marks][:1]
    return min(ends, default=0)
