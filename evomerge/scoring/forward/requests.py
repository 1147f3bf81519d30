"""What is asked of a model: the log-likelihood of continuations, or a generated text."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class LikelihoodRequest:
    """The log-likelihood of `answer` at the end of a row.

    row: token ids that are forwarded: context and answer without its last token, the left end cut off where
        it exceeds the model's maximum length. The answer is predicted at the last `len(answer)` positions.
    cut: whether it was cut.
    """

    row: tuple[int, ...]
    answer: tuple[int, ...]
    cut: bool


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue.

    prompt: token ids, the left end cut off where prompt and answer exceed the model's maximum length.
    until: strings that end the answer, the end-of-text token's among them.
    max_tokens: the answer's greatest length.
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
        """Whether the answer is drawn, and may differ each time."""
        return bool(json.loads(self.options).get("do_sample"))
