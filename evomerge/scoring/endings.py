"""Where generated answers end: at a stop string, at an end-of-text token, or where their logits go bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


class Endings:
    """Says where answers end: at one of the stop strings, or at an end-of-text token.

    Most tokens cannot end a stop string, and cost no look at the text.

    Args:
        until: stop strings, at least one.
        eos: the end-of-text token's id, or several; None where there is none.
        vocabulary: how many token ids there are.
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
        """Whether an answer, as token ids, ends with its latest token."""
        if answer[-1] in self._eos:
            return True
        if not self._any and answer[-1] not in self._may_end:
            return False
        tail = self._tokenizer.decode(answer[-self._window :])
        return any(stop in tail for stop in self._until)


class StopRows(StoppingCriteria):  # type: ignore[misc]
    """Ends each row of `model.generate` where its answer ends.

    lm-eval runs a batch until all its rows have stopped; ending each row alone makes an answer what it is in a
    batch of one.

    Args:
        start: the column at which answers begin.
    """

    def __init__(self, endings: Endings, start: int) -> None:
        self._endings = endings
        self._start = start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether each row ends with its latest token, (b,) bool."""
        answers = input_ids[:, self._start :].tolist()
        return torch.tensor([self._endings(answer) for answer in answers], device=input_ids.device)


class LogitsWatch(LogitsProcessor):  # type: ignore[misc]
    """Notes the rows of `model.generate` whose logits are not all finite, without waiting for the device.

    Attributes:
        bad: (rows,) bool.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.bad = torch.zeros(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores as they are."""
        finite = torch.isfinite(scores.max(dim=-1).values)
        self.bad |= ~finite.view(len(self.bad), -1).all(dim=-1)  # a row may have several beams
        return scores
