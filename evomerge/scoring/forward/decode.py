"""Greedy answers to many prompts at once: shared beginnings are forwarded once, finished rows leave the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from evomerge.scoring.forward import attention, head, prefixes
from evomerge.scoring.forward.attention import Attention, KeysValues, Step, Walk
from evomerge.scoring.forward.budgets import Budget

Ended = Callable[[list[int], list[list[int]]], list[bool]]


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, (b, heads, columns, d), with room for answers; filled up to `column`."""

    def __init__(self, keys: Tensor, values: Tensor, column: int) -> None:
        super().__init__()
        self.keys, self.values, self.column = keys, values, column

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Adds one column; gives all."""
        self.keys[:, :, self.column] = key_states[:, :, 0]
        self.values[:, :, self.column] = value_states[:, :, 0]
        self.column += 1
        return self.keys[:, :, : self.column], self.values[:, :, : self.column]

    def get_seq_length(self) -> int:
        """Columns filled."""
        return self.column

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys in all, and the first one's position."""
        return self.column + query_length, 0

    def get_max_length(self) -> int:
        """Columns there are."""
        return int(self.keys.shape[2])

    def select(self, rows: Tensor) -> None:
        """Keeps some rows."""
        self.keys, self.values = self.keys[rows], self.values[rows]


@dataclass
class Prompt:
    """A prompt that has been forwarded.

    trunk: keys and values of its beginning, shared with others; own: (heads, length, d) of the rest, of each layer.
    hidden: (d,) the state that the answer's first token is read from.
    """

    trunk: KeysValues
    own: KeysValues
    hidden: Tensor
    length: int

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Copies a layer's keys and values into (heads, columns, d) tensors."""
        past = 0
        if self.trunk:
            trunk_keys, trunk_values = self.trunk[layer]
            past = trunk_keys.shape[2]
            keys[:, :past], values[:, :past] = trunk_keys[0], trunk_values[0]
        keys[:, past : self.length], values[:, past : self.length] = self.own[layer]


@dataclass(frozen=True)
class Reading:
    """Distinct prompts, ready to be forwarded.

    places: of each prompt, (length, 3) places of its tokens, see `prefixes.Plan`.
    needs: of each prompt, the numbers of the steps that forward it, in order; it is whole with the last.
    waves: the prompts in the order in which they are forwarded, cut into batches of answers.
    max_tokens: of an answer.
    """

    steps: list[Step]
    places: list[np.ndarray]
    needs: list[list[int]]
    waves: list[list[int]]
    max_tokens: int


def prepare(model: Any, prompts: Sequence[np.ndarray], max_tokens: int, reads: Budget, columns: int) -> Reading:
    """Lays prompts out.

    prompts: int64 token ids, distinct.
    reads: how many tokens a forward pass over prompts may have.
    columns: keys, of all prompts and answers, that a batch of answers may hold.
    """
    lengths = [len(prompt) for prompt in prompts]
    plan = prefixes.plan_passes(prompts, lengths, reads.tokens, reads.line, attention.cost(model))
    needs = [np.unique(places[:, 0]).tolist() for places in plan.places]
    waves: list[list[int]] = []
    longest = 0
    for at in sorted(range(len(prompts)), key=lambda at: (needs[at][-1], at)):
        longest = max(longest, lengths[at] + max_tokens)
        if waves and (len(waves[-1]) + 1) * longest <= columns:
            waves[-1].append(at)
        else:
            waves.append([at])
            longest = lengths[at] + max_tokens
    steps = [Step.of(batch, model.device) for batch in plan.batches]
    return Reading(steps, plan.places, needs, waves, max_tokens)


@dataclass
class Decoder:
    """Answers prompts greedily.

    tokens, padding: forwarded so far.
    size: of the latest batch, tokens of prompts if it was reading them, and else keys.
    """

    model: Any
    masks: Attention
    tokens: int = field(default=0, init=False)
    padding: int = field(default=0, init=False)
    size: int = field(default=0, init=False)
    reading: bool = field(default=True, init=False)

    def run(
        self,
        reading: Reading,
        ended: Ended,
        known: Callable[[int], bool],
        done: Callable[[int, list[int], bool], None],
    ) -> None:
        """Answers prompts.

        ended: says of answers, by number of the prompt and tokens so far, whether each has come to its end.
        known: whether a prompt's answer is known. A batch of which all are is skipped.
        done: is given each answer: the prompt's number, the tokens, and whether all its logits were numbers.

        Raises:
            torch.OutOfMemoryError: answers given before stand.
        """
        waves = [wave for wave in reading.waves if not all(map(known, wave))]
        wanted: set[int] = set()
        whole_with: dict[int, list[int]] = {}
        for at in itertools.chain.from_iterable(waves):
            wanted.update(reading.needs[at])
            whole_with.setdefault(reading.needs[at][-1], []).append(at)
        walk = Walk(self.model, self.masks)
        ready: dict[int, Prompt] = {}
        try:
            for number in sorted(wanted):
                step = reading.steps[number]
                self.size, self.reading = step.ids.numel(), True
                ready |= self._prefill(walk, step, whole_with.get(number, []), reading.places)
                while waves and all(at in ready for at in waves[0]):
                    wave = waves.pop(0)
                    self._answer(wave, [ready.pop(at) for at in wave], reading.max_tokens, ended, done)
        finally:
            self.tokens, self.padding = self.tokens + walk.tokens, self.padding + walk.padding

    def _prefill(self, walk: Walk, step: Step, mine: list[int], places: list[np.ndarray]) -> dict[int, Prompt]:
        """Forwards a batch; gives the prompts that are whole with it."""
        hidden, after = walk.forward(step, keep=bool(mine))
        past = step.batch.past
        trunk = [] if step.batch.keep else walk.kept
        found = {}
        for at in mine:
            _, line, column = places[at][-1].tolist()
            columns = places[at][past:, 2] + past
            if step.batch.keep:  # the prompt ends on a trunk, or at its end
                columns = np.arange(len(places[at]))
            index = attention.as_tensor(columns, hidden.device)
            own = [(keys[line][:, index], values[line][:, index]) for keys, values in after]
            found[at] = Prompt(trunk, own, hidden[line, column], len(places[at]))
        return found

    def _answer(
        self,
        wave: list[int],
        prompts: list[Prompt],
        max_tokens: int,
        ended: Ended,
        done: Callable[[int, list[int], bool], None],
    ) -> None:
        """Answers a batch of forwarded prompts."""
        numbers = list(wave)
        answers: dict[int, list[int]] = {at: [] for at in numbers}
        columns = max(prompt.length for prompt in prompts)
        self.size, self.reading = len(prompts) * (columns + max_tokens), False
        layers = self._layers(prompts, columns, max_tokens)
        device = self.model.device
        lengths = attention.as_tensor([prompt.length for prompt in prompts], device)
        hidden = torch.stack([prompt.hidden for prompt in prompts])
        finite = torch.ones(len(prompts), dtype=torch.bool, device=device)
        embedding = self.model.get_output_embeddings()
        for step in range(max_tokens):
            best, number = head.best_tokens(hidden, embedding.weight, getattr(embedding, "bias", None))
            finite &= number
            for at, token in zip(numbers, best.tolist(), strict=True):
                answers[at].append(token)
            over = ended(numbers, [answers[at] for at in numbers])
            if step == max_tokens - 1:
                over = [True] * len(over)
            if any(over):
                are_finite = finite.tolist()
                for at, is_over, is_finite in zip(numbers, over, are_finite, strict=True):
                    if is_over:
                        done(at, answers[at], is_finite)
                left = [row for row, is_over in enumerate(over) if not is_over]
                if not left:
                    return
                numbers = [numbers[row] for row in left]
                rows = attention.as_tensor(left, device)
                best, lengths, finite = best[rows], lengths[rows], finite[rows]
                for layer in layers:
                    layer.select(rows)
            self.tokens += len(numbers)
            hidden = self.model.base_model(
                input_ids=best[:, None],
                position_ids=(lengths + step)[:, None],
                attention_mask=self.masks.steps(lengths, columns, step),
                past_key_values=Cache(layers=layers),
                use_cache=True,
            )[0][:, 0]

    def _layers(self, prompts: list[Prompt], columns: int, max_tokens: int) -> list[_Layer]:
        """The prompts' keys and values, each prompt from the first column on, and room for the answers."""
        layers = []
        for number, (keys, values) in enumerate(prompts[0].own):
            heads, _, width = keys.shape
            # Masked columns must hold numbers, too.
            all_keys = keys.new_zeros(len(prompts), heads, columns + max_tokens, width)
            all_values = values.new_zeros(len(prompts), heads, columns + max_tokens, values.shape[2])
            for row, prompt in enumerate(prompts):
                prompt.write(number, all_keys[row], all_values[row])
            layers.append(_Layer(all_keys, all_values, columns))
        return layers
