"""Answers in free text, with lm-eval's stop strings, lengths and truncation.

Greedy answers, which are nearly all, come from `forward.decode`; the others come from `model.generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evomerge.errors import CandidateError, one_line
from evomerge.scoring.encoder import Encoder
from evomerge.scoring.endings import Endings, LogitsWatch, StopRows
from evomerge.scoring.forward.budgets import Budget, Recent
from evomerge.scoring.forward.decode import Decoder, Reading, prepare_reading
from evomerge.scoring.forward.masks import TreeMasks
from evomerge.scoring.forward.requests import GenerationRequest
from evomerge.scoring.generation_options import is_greedy, is_plain, keywords_of
from evomerge.scoring.lm_eval_parts import cut_at_stops


@dataclass(frozen=True)
class Generation:
    """One generated answer.

    Attributes:
        text: the answer up to the first stop string.
        tokens: how many were generated.
        finished: whether a stop string or an end-of-text token ended it, rather than its greatest length.
        finite: whether all its logits were finite.
    """

    text: str
    tokens: int
    finished: bool
    finite: bool


Listener = Callable[[dict[int, Generation]], None]
"""Is given answers as they are found, by the numbers of their requests."""


@dataclass(frozen=True)
class Generated:
    """Generated answers.

    Attributes:
        answers: number of a request -> its answer.
        tokens: how many were forwarded, prompts and answers.
        padding: how many padding tokens were forwarded besides.
    """

    answers: dict[int, Generation]
    tokens: int
    padding: int


class Generator:
    """All generation requests of a fitness, tokenized; any choice of them is answered as often as asked.

    Args:
        budgets: of a forward pass over prompts, and of the keys that a batch of answers may hold.
        masks: tell the model which token sees which; None leaves all requests to `model.generate`.
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
        self._masks = masks if requests and is_plain(model.generation_config) else None
        self._endings: dict[tuple[str, ...], Endings] = {}
        self._readings: Recent[Reading] = Recent()
        # Any token does for padding, which is masked; a tokenizer's own may have no row in the embedding.
        pad = encoder.tokenizer.pad_token_id
        self._padding = pad if pad < model.get_input_embeddings().weight.shape[0] else 0

    @torch.no_grad()
    def run(
        self,
        chosen: Sequence[int],
        known: dict[int, Generation] | None = None,
        report: Listener = lambda answers: None,
    ) -> Generated:
        """Answers the chosen requests with the model's present weights.

        Equal requests are answered once unless they sample. Requests share a batch when stop strings, lengths and
        options are equal.

        Args:
            known: answers that an earlier call with the same choice reported before it was interrupted. Batches
                that are known whole are skipped; the others are what they would have been.

        Raises:
            CandidateError: memory runs out even for a small batch.
        """
        first: dict[GenerationRequest, int] = {}
        same = {at: at if (one := self._requests[at]).sampled else first.setdefault(one, at) for at in chosen}
        groups: dict[tuple[Any, ...], list[int]] = {}
        for at in dict.fromkeys(same.values()):
            request = self._requests[at]
            groups.setdefault((request.until, request.max_tokens, request.options), []).append(at)
        answers: dict[int, Generation] = {}
        tokens = padding = 0
        for rows in groups.values():
            greedy = self._masks is not None and is_greedy(self._requests[rows[0]])
            begun = {at: known[at] for at in rows if at in known} if known else {}
            made = (self._decode if greedy else self._generate)(rows, begun, report)
            answers |= made.answers
            tokens, padding = tokens + made.tokens, padding + made.padding
        return Generated({at: answers[one] for at, one in same.items()}, tokens, padding)

    def _decode(self, rows: list[int], known: dict[int, Generation], report: Listener) -> Generated:
        """Greedy answers to requests of equal stop strings and lengths, by our own loop."""
        assert self._masks is not None
        request = self._requests[rows[0]]
        endings = self._endings_of(request.until)
        answers = dict(known)
        tokens = padding = 0

        def done(number: int, answer: list[int], finite: bool) -> None:
            answers[rows[number]] = self._generation(request, answer, finite)
            report({rows[number]: answers[rows[number]]})

        while True:
            decoder = Decoder(self._model, self._masks)
            sizes = [budget.sizes for budget in self._budgets]
            reading = self._readings.get((tuple(rows), *sizes), lambda: self._read(rows))
            try:
                decoder.run(
                    reading,
                    lambda _, latest: [endings(answer) for answer in latest],
                    lambda number: rows[number] in answers,
                    done,
                )
                return Generated(answers, tokens + decoder.tokens, padding + decoder.padding)
            except torch.OutOfMemoryError:
                size, budget = decoder.size, self._budgets[0 if decoder.reading else 1]
            tokens, padding = tokens + decoder.tokens, padding + decoder.padding
            # Out of the handler, whose exception holds on to the batch's memory.
            del decoder, reading
            self._readings.clear()
            budget.shrink(size)

    def _read(self, rows: list[int]) -> Reading:
        """Lays the prompts of some requests out."""
        prompts = [np.array(self._requests[at].prompt, dtype=np.int64) for at in rows]
        reads, answers = self._budgets
        return prepare_reading(self._model, prompts, self._requests[rows[0]].max_tokens, reads, answers.tokens)

    def _generation(self, request: GenerationRequest, answer: list[int], finite: bool) -> Generation:
        """An answer as text. answer: token ids. finite: whether all its logits were finite."""
        text = cut_at_stops(self._encoder.tok_decode(answer), request.until)
        return Generation(text, len(answer), self._endings_of(request.until)(answer), finite)

    def _endings_of(self, until: tuple[str, ...]) -> Endings:
        """The endings of some stop strings, made once."""
        if until not in self._endings:
            vocabulary = self._model.get_input_embeddings().weight.shape[0]
            eos = self._model.generation_config.eos_token_id
            self._endings[until] = Endings(self._encoder.tokenizer, until, eos, vocabulary)
        return self._endings[until]

    def _generate(self, rows: list[int], known: dict[int, Generation], report: Listener) -> Generated:
        """Answers by `model.generate`: samples, beams, penalties, and models that cannot be told what to see."""
        answers = dict(known)
        padding = 0
        for batch in self._budgets[1].batches(rows, self._length):
            if all(at in answers for at in batch):
                continue
            for part in self._budgets[1].halving(batch, self._length(batch[0]), self._answer):
                answers |= part
                report(part)
                longest = max(len(self._requests[at].prompt) for at in part)
                padding += sum(longest - len(self._requests[at].prompt) for at in part)
        new = [at for at in answers if at not in known]
        return Generated(answers, sum(len(self._requests[at].prompt) + answers[at].tokens for at in new), padding)

    def _length(self, at: int) -> int:
        """The tokens of a request's prompt and longest answer."""
        return len(self._requests[at].prompt) + self._requests[at].max_tokens

    def _answer(self, rows: list[int]) -> dict[int, Generation]:
        """Answers one batch by `model.generate`, prompts padded on the left."""
        requests = [self._requests[at] for at in rows]
        device = self._model.device
        start = max(len(request.prompt) for request in requests)
        ids = torch.full((len(rows), start), self._padding, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for line, request in enumerate(requests):
            ids[line, start - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[line, start - len(request.prompt) :] = 1
        endings = self._endings_of(requests[0].until)
        watch = LogitsWatch(len(rows), device)
        keywords = {"max_length": start + requests[0].max_tokens, **keywords_of(requests[0])}
        try:
            output = self._model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                stopping_criteria=[StopRows(endings, start)],
                logits_processor=[watch],
                pad_token_id=self._padding,
                use_cache=True,
                **keywords | {"return_dict_in_generate": False},
            ).tolist()
        except (TypeError, ValueError) as error:  # options that it does not know, or that contradict each other
            raise CandidateError(f"generation_kwargs: {one_line(error)}") from error
        bad = watch.bad.tolist()
        answers = {}
        for line, (at, request) in enumerate(zip(rows, requests, strict=True)):
            whole = output[line][start:]
            ends = (end for end in range(1, len(whole) + 1) if endings(whole[:end]))
            answers[at] = self._generation(request, whole[: next(ends, None)], not bad[line])
        return answers
