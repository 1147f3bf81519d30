"""All requests of the built tasks as token ids, and where each document's requests stand among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from evomerge.errors import ConfigError, EvomergeError, one_line
from evomerge.scoring.encoder import Encoder
from evomerge.scoring.engine import Answered
from evomerge.scoring.forward.requests import GenerationRequest, LikelihoodRequest
from evomerge.scoring.smooth_metrics import Response
from evomerge.scoring.tasks import BuiltTask


class Slot(NamedTuple):
    """Where one of lm-eval's requests stands: its kind, and the numbers of the requests that are forwarded for it.

    numbers: one, among the generations or among the log-likelihoods; for a rolling request, its windows' numbers
        among the log-likelihoods.
    """

    kind: Literal["generation", "likelihood", "rolling"]
    numbers: tuple[int, ...]


class Reply(NamedTuple):
    """The answer to one of lm-eval's requests, in the form that lm-eval's own model gives it.

    finite: whether the model's logits were finite. finished: whether a generated text ended before its greatest
    length; True for log-likelihoods.
    """

    response: Response
    finite: bool
    finished: bool


class TokenizedTasks:
    """The requests of all tasks, tokenized once.

    Attributes:
        likelihoods, generations: the requests of all tasks, by number.
        slots: task -> for each document, the slots of its requests, then those of its references.

    Raises:
        ConfigError: a prompt cannot be tokenized, or a request cannot be answered, or it has a token that the model
            has no row for.
    """

    def __init__(self, encoder: Encoder, tasks: Mapping[str, BuiltTask]) -> None:
        self.likelihoods: list[LikelihoodRequest] = []
        self.generations: list[GenerationRequest] = []
        self.slots: dict[str, list[list[Slot]]] = {}
        for name, built in tasks.items():
            try:
                self.slots[name] = [
                    [self._add(encoder, name, instance) for instance in (*document.instances, *document.references)]
                    for document in built.documents
                ]
            except EvomergeError:
                raise
            except Exception as error:
                raise ConfigError(name, [f"its prompts cannot be tokenized: {one_line(error)}"]) from error

    def _add(self, encoder: Encoder, task: str, instance: Any) -> Slot:
        """Tokenizes one of lm-eval's requests, and returns where it stands."""
        if instance.request_type == "generate_until":
            self.generations.append(encoder.generation(task, instance))
            encoder.check_tokens(task, instance, self.generations[-1])
            return Slot("generation", (len(self.generations) - 1,))
        first = len(self.likelihoods)
        rolling = instance.request_type == "loglikelihood_rolling"
        self.likelihoods += encoder.rolling(instance) if rolling else [encoder.likelihood(task, instance)]
        for request in self.likelihoods[first:]:
            encoder.check_tokens(task, instance, request)
        return Slot("rolling" if rolling else "likelihood", tuple(range(first, len(self.likelihoods))))

    def likelihood_numbers(self) -> dict[str, list[list[int]]]:
        """Task -> for each document, the numbers of its log-likelihood requests, those of its references last."""
        return {
            name: [
                [number for slot in slots if slot.kind != "generation" for number in slot.numbers]
                for slots in documents
            ]
            for name, documents in self.slots.items()
        }

    def count_cut(self, documents: Sequence[Sequence[Slot]]) -> int:
        """How many documents lose the left end of some prompt to the model's maximum length."""
        return sum(any(self._is_cut(slot) for slot in slots) for slots in documents)

    def _is_cut(self, slot: Slot) -> bool:
        requests = self.generations if slot.kind == "generation" else self.likelihoods
        return any(requests[number].cut for number in slot.numbers)


def reply(slot: Slot, answered: Answered) -> Reply:
    """What lm-eval's model would answer: the text, the pair, or the sum over a rolling request's windows."""
    if slot.kind == "generation":
        text = answered.generations[slot.numbers[0]]
        return Reply(text.text, text.finite, text.finished)
    pairs = [answered.likelihoods[number] for number in slot.numbers]
    response: Response = pairs[0] if slot.kind == "likelihood" else float(sum(pair[0] for pair in pairs))
    return Reply(response, all(math.isfinite(pair[0]) for pair in pairs), finished=True)
