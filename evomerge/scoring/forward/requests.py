"""The requests that a model answers: the log-likelihood of a continuation, or a generated text."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class LikelihoodRequest:
    """Asks for the log-likelihood of `answer` at the end of a row.

    Attributes:
        row: the token ids that are forwarded: context and answer without its last token, the left end cut off where
            they exceed the model's maximum length. The answer is predicted at the last `len(answer)` positions.
        answer: token ids.
        cut: whether the left end was cut off.
    """

    row: tuple[int, ...]
    answer: tuple[int, ...]
    cut: bool


@dataclass(frozen=True)
class GenerationRequest:
    """Asks for the continuation of a prompt.

    Attributes:
        prompt: token ids, the left end cut off where prompt and answer exceed the model's maximum length.
        until: strings that end the answer, the end-of-text token's among them.
        max_tokens: the answer's greatest length, in tokens.
        options: further keywords of `model.generate`, as JSON.
        cut: whether the prompt was cut.
    """

    prompt: tuple[int, ...]
    until: tuple[str, ...]
    max_tokens: int
    options: str
    cut: bool

    @property
    def sampled(self) -> bool:
        """Whether the answer is drawn at random, and may differ each time."""
        return bool(json.loads(self.options).get("do_sample"))
