"""Tokens, by lm-eval's own code: what its HFLM would feed the model for each request."""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

from lm_eval.api.instance import Instance

from evomerge.errors import ConfigError
from evomerge.models.known_tokens import unknown_token
from evomerge.models.loading import known_part
from evomerge.scoring.forward.requests import GenerationRequest, LikelihoodRequest
from evomerge.scoring.lm_eval_parts import NotingModel, generation_options

_REMEMBERED = 64  # strings whose tokens are remembered


class Encoder(NotingModel):
    """lm-eval's Hugging Face model, of which only the tokenization and the chat template are used.

    The tokenizer is copied: lm-eval may give it a padding token.

    Args:
        longest: tokens of the longest row; None takes what the model's configuration says.
    """

    def __init__(self, model: Any, tokenizer: Any, longest: int | None = None) -> None:
        self._known: dict[tuple[str, bool | None], list[int]] = {}
        copied = copy.deepcopy(tokenizer)
        super().__init__(pretrained=model, tokenizer=copied, backend="causal", max_length=longest)
        head, embedding = known_part(model.get_output_embeddings), known_part(model.get_input_embeddings)
        self._read = sys.maxsize if embedding is None else embedding.weight.shape[0]
        self._written = self._read if head is None else head.weight.shape[0]

    def check_tokens(self, task: str, instance: Instance, request: LikelihoodRequest | GenerationRequest) -> None:
        """Checks that the model has a row for each token of a request.

        Raises:
            ConfigError: naming the task, the document and the token.
        """
        if isinstance(request, GenerationRequest):
            wrong = unknown_token(request.prompt, self._read, self.tokenizer)
        else:
            wrong = unknown_token(request.row, self._read, self.tokenizer)
            wrong = wrong or unknown_token(request.answer, self._written, self.tokenizer)
        if wrong is not None:
            raise ConfigError(task, [f"document {instance.doc_id}: its text {wrong}"])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, as lm-eval's HFLM gives them.

        The latest strings are remembered, because the choices of a document share a context.
        """
        key = (string, add_special_tokens)
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = super().tok_encode(string, add_special_tokens)
        return self._known[key]

    def _request(self, context: list[int], answer: list[int]) -> LikelihoodRequest:
        """The row that lm-eval's HFLM would forward for a context and an answer."""
        whole = (*context, *answer)
        row = whole[-(self.max_length + 1) :][:-1]
        return LikelihoodRequest(row, tuple(answer), len(row) < len(whole) - 1)

    def likelihood(self, task: str, instance: Instance) -> LikelihoodRequest:
        """The request that `HFLM.loglikelihood` would forward.

        Raises:
            ConfigError: the answer has no tokens, or more than the model's maximum length; or nothing precedes it.
        """
        # lm-eval itself fails on an empty answer.
        pairs = self.noted(self.loglikelihood, instance) if instance.args[1] else [([], [])]
        ((context, answer),) = pairs
        if not 0 < len(answer) <= self.max_length:
            fault = f"document {instance.doc_id}: an answer of {len(answer)} tokens cannot be scored"
            raise ConfigError(task, [f"{fault} (the model's maximum length is {self.max_length})"])
        if not context:
            fault = f"document {instance.doc_id}: nothing goes before the answer {instance.args[1]!r}"
            raise ConfigError(task, [f"{fault}, and this tokenizer puts no beginning-of-text token there"])
        return self._request(context, answer)

    def rolling(self, instance: Instance) -> list[LikelihoodRequest]:
        """The requests that `HFLM.loglikelihood_rolling` would forward: one for each window of a text.

        Each token is the answer in one window; the first is predicted from lm-eval's prefix token. A window holds
        as much of the text before its answer as the model's maximum length allows. A text without tokens has none.
        """
        return [self._request(*pair) for pair in self.noted(self.loglikelihood_rolling, instance)]

    def generation(self, task: str, instance: Instance) -> GenerationRequest:
        """The request that `HFLM.generate_until` would continue.

        Raises:
            ConfigError: the answer's greatest length is below 1, or leaves no room for a prompt; the prompt has no
                tokens; a stop string is no text; sampled answers are asked for repeatedly.
        """
        text, keywords = instance.args
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        options, until, max_tokens = generation_options(keywords, self.max_gen_toks, eos)
        if not all(isinstance(stop, str) for stop in until):
            raise ConfigError(task, ["generation_kwargs.until must be a text or a list of texts"])
        if max_tokens < 1:
            raise ConfigError(task, [f"max_gen_toks is {max_tokens}; it must be 1 or more"])
        room = self.max_length - max_tokens
        if room <= 0:
            fault = f"max_gen_toks is {max_tokens}, but the model's maximum length is {self.max_length}"
            raise ConfigError(task, [f"{fault}: set generation_kwargs.max_gen_toks in the task lower"])
        if options.get("do_sample") and instance.repeats > 1:
            raise ConfigError(task, [f"repeats: {instance.repeats} sampled answers are not supported; use 1"])
        ids = self.tok_batch_encode([text])[0][0].tolist()
        if not ids:
            raise ConfigError(task, [f"document {instance.doc_id}: its prompt has no tokens"])
        prompt = tuple(ids[-room:])
        return GenerationRequest(
            prompt, tuple(until), max_tokens, json.dumps(options, sort_keys=True), len(prompt) < len(ids)
        )
