"""The scorer: all tasks of a fitness, ready to be scored on one live model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.errors import CandidateError, ConfigError, EvomergeError
from evomerge.scoring.encoder import Encoder, GenerationRequest, LikelihoodRequest
from evomerge.scoring.generate import Generator
from evomerge.scoring.memory import Budget
from evomerge.scoring.metrics import Metrics, Response
from evomerge.scoring.packed import Packed
from evomerge.scoring.quiet import quiet, seeded
from evomerge.scoring.tasks import TaskScore, TaskSpec, build_tasks, one_line

_CPU_TOKENS, _DEVICE_TOKENS = 1024, 32768


class _Slot(NamedTuple):
    """Where a request stands: among the generations or the log-likelihoods, and its number there."""

    generated: bool
    number: int


class _Answer(NamedTuple):
    response: Response
    finite: bool
    finished: bool


@dataclass(frozen=True)
class Report:
    """What one call of `score` found.

    tasks: task -> its score.
    tokens: tokens forwarded, prompts and generated ones, without padding. padding: padding tokens besides.
    truncated: task -> generated answers that reached their greatest length before a stop string or end of text.
    cut_prompts: task -> documents of which some prompt lost its left end to the model's maximum length.
    """

    tasks: dict[str, TaskScore]
    tokens: int
    padding: int
    truncated: dict[str, int]
    cut_prompts: dict[str, int]


class Scorer:
    """Tasks built, prompted and tokenized once; scored on a live model as often as asked.

        scorer = Scorer(model, tokenizer, [TaskSpec("tiny_reverse")], include=Path("tasks"))
        while True:
            ...  # overwrite the model's parameters in place
            report = scorer.score()

    model: a transformers causal language model. Its parameters may be overwritten in place between calls; its
        structure may not change.
    include: folder of local task YAML files.
    apply_chat_template: wrap prompts in the tokenizer's chat template, few-shot examples as turns.
    batch_tokens: tokens per batch, padding included; None chooses by device. Halved when memory runs out.

    documents: task -> number of its documents; ids count from 0. A group's tasks appear by their own names.
    expanded: the task, group or tag of each spec -> the tasks it stands for.
    full_forward: whether whole logits must be computed, because this model's cannot be had from its hidden states.

    Raises:
        ConfigError: a task is unknown, named twice, cannot be built, or is of a kind that is not scored.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        specs: Sequence[TaskSpec],
        *,
        include: Path | None = None,
        apply_chat_template: bool = False,
        batch_tokens: int | None = None,
    ) -> None:
        if not specs:
            raise ConfigError("fitness", ["it names no task"])
        if apply_chat_template and not getattr(tokenizer, "chat_template", None):
            raise ConfigError("fitness", ["apply_chat_template: this tokenizer has no chat template"])
        self._model = model
        with quiet():
            encoder = Encoder(model, tokenizer)
            template = encoder.apply_chat_template if apply_chat_template else None
            self.expanded, self._tasks = build_tasks(specs, include, template)
            self._index(encoder)
            self._metrics = {name: Metrics(built) for name, built in self._tasks.items()}
            tokens = batch_tokens or (_CPU_TOKENS if model.device.type == "cpu" else _DEVICE_TOKENS)
            self._packed = Packed(model, self._likelihoods, Budget(tokens))
            self._generator = Generator(model, encoder, self._generations, Budget(4 * tokens))
        self.documents = {name: len(built.documents) for name, built in self._tasks.items()}
        self.full_forward = bool(self._likelihoods) and not self._packed.shortcut

    def _index(self, encoder: Encoder) -> None:
        """Tokenizes all requests. Each document knows its requests by kind and number."""
        self._likelihoods: list[LikelihoodRequest] = []
        self._generations: list[GenerationRequest] = []
        self._slots: dict[str, list[list[_Slot]]] = {}
        for name, built in self._tasks.items():
            try:
                self._slots[name] = [
                    [self._slot(encoder, name, instance) for instance in document.instances]
                    for document in built.documents
                ]
            except EvomergeError:
                raise
            except Exception as error:
                raise ConfigError(name, [f"its prompts cannot be tokenized: {one_line(error)}"]) from error

    def _slot(self, encoder: Encoder, task: str, instance: Any) -> _Slot:
        if instance.request_type == "generate_until":
            self._generations.append(encoder.generation(task, instance))
            return _Slot(True, len(self._generations) - 1)
        self._likelihoods.append(encoder.likelihood(task, instance))
        return _Slot(False, len(self._likelihoods) - 1)

    def metrics(self, task: str) -> tuple[str, ...]:
        """The metrics of a task that have one number per document: lm-eval's, then the smooth ones."""
        return self._metrics[task].names

    def higher_is_better(self, task: str, metric: str) -> bool:
        """Whether a greater value of the metric is the better one, as the task says; smooth metrics all are."""
        return bool(self._tasks[task].task.higher_is_better().get(metric.split(",")[0], True))

    def document_hashes(self, task: str) -> tuple[str, ...]:
        """One sha256 per document, of its own question and answers: equal where two tasks share a document.

        Few-shot examples, chat template and the order of the choices do not enter.
        """
        return tuple(document.digest for document in self._tasks[task].documents)

    def score(self, documents: Mapping[str, Sequence[int]] | None = None) -> Report:
        """Scores the model's present weights.

        documents: task -> ids of the documents to score, in any order; tasks left out are not scored. None: all.

        Raises:
            CandidateError: logits are not finite, one row alone runs out of memory, or a task's own metric code
                fails on an answer.
        """
        chosen = self._chosen(documents)
        slots = {name: [self._slots[name][at] for at in ids] for name, ids in chosen.items()}
        self._model.eval()
        with quiet(), seeded(self._model.device):
            answers, tokens, padding = self._answers(
                [slot for name in slots for one in slots[name] for slot in one]
            )
            tasks = {}
            for name, ids in chosen.items():
                if not all(answers[slot].finite for one in slots[name] for slot in one):
                    raise CandidateError(f"{name}: the model's logits are not finite (NaN or infinite)")
                responses = [[answers[slot].response for slot in one] for one in slots[name]]
                tasks[name] = self._metrics[name].score(ids, responses)
        return Report(
            tasks=tasks,
            tokens=tokens,
            padding=padding,
            truncated={
                name: sum(not answers[slot].finished for one in slots[name] for slot in one) for name in slots
            },
            cut_prompts={
                name: sum(any(self._is_cut(slot) for slot in one) for one in slots[name]) for name in slots
            },
        )

    def _chosen(self, documents: Mapping[str, Sequence[int]] | None) -> dict[str, list[int]]:
        if documents is None:
            return {name: list(range(count)) for name, count in self.documents.items()}
        chosen = {}
        for name, ids in documents.items():
            if name not in self.documents:
                raise ValueError(f"no task {name!r}; there are {', '.join(self.documents)}")
            chosen[name] = sorted({int(at) for at in ids})
            if not chosen[name]:
                raise ValueError(f"{name}: no documents to score; leave the task out instead")
            if chosen[name][0] < 0 or chosen[name][-1] >= self.documents[name]:
                raise ValueError(f"{name}: document ids must lie in [0, {self.documents[name]})")
        return chosen

    def _answers(self, slots: Sequence[_Slot]) -> tuple[dict[_Slot, _Answer], int, int]:
        """All answers, the tokens forwarded for them, and the padding."""
        answers: dict[_Slot, _Answer] = {}
        tokens = padding = 0
        likelihoods = [slot for slot in slots if not slot.generated]
        if likelihoods:
            found = self._packed.run([slot.number for slot in likelihoods])
            tokens, padding = found.tokens, found.padding
            pairs = zip(found.logprobs.tolist(), found.greedy.tolist(), strict=True)
            for slot, pair in zip(likelihoods, pairs, strict=True):
                answers[slot] = _Answer(pair, finite=math.isfinite(pair[0]), finished=True)
        generations = [slot for slot in slots if slot.generated]
        if generations:
            texts, forwarded = self._generator.run([slot.number for slot in generations])
            tokens += forwarded
            for slot, text in zip(generations, texts, strict=True):
                answers[slot] = _Answer(text.text, finite=text.finite, finished=text.finished)
        return answers, tokens, padding

    def _is_cut(self, slot: _Slot) -> bool:
        return (self._generations if slot.generated else self._likelihoods)[slot.number].cut
