"""Greedy answers to many prompts at once: shared beginnings are forwarded once, finished rows leave the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.models.batching import cut_batches
from evomerge.scoring.forward import head
from evomerge.scoring.forward.budgets import Budget
from evomerge.scoring.forward.caches import AnswerLayer, KeysValues, answer_cache
from evomerge.scoring.forward.costs import cost_of
from evomerge.scoring.forward.masks import TreeMasks
from evomerge.scoring.forward.prefixes import plan_passes
from evomerge.scoring.forward.walk import Step, Walk, as_tensor

Ended = Callable[[list[int], list[list[int]]], list[bool]]
"""Says whether each answer has come to its end, from the prompts' numbers and the answers' tokens so far."""

Done = Callable[[int, list[int], bool], None]
"""Takes an answer: the prompt's number, the answer's tokens, and whether all its logits were finite."""


@dataclass
class Prompt:
    """A prompt that has been forwarded.

    Attributes:
        trunk: the keys and values of its beginning, (1, heads, past, d) for each layer, shared with other prompts.
        own: the keys and values of the rest, (heads, length - past, d) for each layer.
        hidden: (d,), the hidden state from which the answer's first token is read.
        length: tokens of the whole prompt.
    """

    trunk: KeysValues
    own: KeysValues
    hidden: Tensor
    length: int

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Copies the keys and values of the layer with this number into (heads, columns, d) tensors."""
        past = 0
        if self.trunk:
            trunk_keys, trunk_values = self.trunk[layer]
            past = trunk_keys.shape[2]
            keys[:, :past], values[:, :past] = trunk_keys[0], trunk_values[0]
        keys[:, past : self.length], values[:, past : self.length] = self.own[layer]


@dataclass(frozen=True)
class Reading:
    """Distinct prompts, ready to be forwarded.

    Attributes:
        places: for each prompt, (length, 3) int64, the places of its tokens, see `pass_plan.PassPlan`.
        needs: for each prompt, the numbers of the steps that forward it, in order; it is whole with the last.
        waves: the prompts in the order in which they are forwarded, cut into batches of answers.
        max_tokens: the greatest length of an answer.
    """

    steps: list[Step]
    places: list[np.ndarray]
    needs: list[list[int]]
    waves: list[list[int]]
    max_tokens: int


def prepare_reading(
    model: Any, prompts: Sequence[np.ndarray], max_tokens: int, reads: Budget, columns: int
) -> Reading:
    """Lays prompts out in forward passes, and their answers in batches.

    Args:
        prompts: int64 token ids, distinct prompts.
        max_tokens: the greatest length of an answer.
        reads: how many tokens a forward pass over prompts may have.
        columns: how many keys, of all prompts and answers, a batch of answers may hold.
    """
    lengths = [len(prompt) for prompt in prompts]
    plan = plan_passes(prompts, lengths, reads.tokens, reads.line, cost_of(model))
    needs = [np.unique(places[:, 0]).tolist() for places in plan.places]
    ready = sorted(range(len(prompts)), key=lambda at: (needs[at][-1], at))
    waves = cut_batches(ready, lambda at: lengths[at] + max_tokens, columns)
    steps = [Step.of(batch, model.device) for batch in plan.batches]
    return Reading(steps, plan.places, needs, waves, max_tokens)


@dataclass
class Decoder:
    """Answers prompts greedily.

    Attributes:
        tokens, padding: how many were forwarded so far.
        size: of the latest batch: tokens of prompts while it was reading them, else keys of prompts and answers.
        reading: whether the latest batch was one of prompts.
    """

    model: Any
    masks: TreeMasks
    tokens: int = field(default=0, init=False)
    padding: int = field(default=0, init=False)
    size: int = field(default=0, init=False)
    reading: bool = field(default=True, init=False)

    def run(self, reading: Reading, ended: Ended, known: Callable[[int], bool], done: Done) -> None:
        """Answers prompts.

        Args:
            known: whether the answer to the prompt with this number is known. A batch of known answers is skipped.
            done: is given each answer once it has ended.

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
        """Forwards a batch, and returns the prompts that are whole with it. mine: their numbers."""
        hidden, after = walk.forward(step, keep=bool(mine))
        past = step.batch.past
        trunk = [] if step.batch.keep else walk.kept
        ready = {}
        for at in mine:
            _, line, column = places[at][-1].tolist()
            columns = places[at][past:, 2] + past
            if step.batch.keep:  # the prompt ends on a trunk, or at its end
                columns = np.arange(len(places[at]))
            index = as_tensor(columns, hidden.device)
            own = [(keys[line][:, index], values[line][:, index]) for keys, values in after]
            ready[at] = Prompt(trunk, own, hidden[line, column], len(places[at]))
        return ready

    def _answer(self, wave: list[int], prompts: list[Prompt], max_tokens: int, ended: Ended, done: Done) -> None:
        """Answers a batch of forwarded prompts. wave: their numbers."""
        numbers = list(wave)
        answers: dict[int, list[int]] = {at: [] for at in numbers}
        columns = max(prompt.length for prompt in prompts)
        self.size, self.reading = len(prompts) * (columns + max_tokens), False
        layers = self._layers(prompts, columns, max_tokens)
        device = self.model.device
        lengths = as_tensor([prompt.length for prompt in prompts], device)
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
                rows = as_tensor(left, device)
                best, lengths, finite = best[rows], lengths[rows], finite[rows]
                for layer in layers:
                    layer.select(rows)
            self.tokens += len(numbers)
            hidden = self.model.base_model(
                input_ids=best[:, None],
                position_ids=(lengths + step)[:, None],
                attention_mask=self.masks.of_step(lengths, columns, step),
                past_key_values=answer_cache(layers),
                use_cache=True,
            )[0][:, 0]

    def _layers(self, prompts: list[Prompt], columns: int, max_tokens: int) -> list[AnswerLayer]:
        """The prompts' keys and values, each prompt from the first column on, with room for the answers."""
        layers = []
        for number, (keys, values) in enumerate(prompts[0].own):
            heads, _, width = keys.shape
            # Masked columns must hold numbers, too.
            all_keys = keys.new_zeros(len(prompts), heads, columns + max_tokens, width)
            all_values = values.new_zeros(len(prompts), heads, columns + max_tokens, values.shape[2])
            for row, prompt in enumerate(prompts):
                prompt.write(number, all_keys[row], all_values[row])
            layers.append(AnswerLayer(all_keys, all_values, columns))
        return layers
