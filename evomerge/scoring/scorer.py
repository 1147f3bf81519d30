"""The scorer: all tasks of a fitness, ready to be scored on one live model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from evomerge.errors import CandidateError, ConfigError
from evomerge.scoring.answers import Answers
from evomerge.scoring.backward import Ascent, Attempt, Backward
from evomerge.scoring.encoder import Encoder
from evomerge.scoring.engine import Answered, Engine
from evomerge.scoring.groups import members
from evomerge.scoring.metrics import Metrics
from evomerge.scoring.quiet import quiet, seeded
from evomerge.scoring.reports import Report, TaskSpec
from evomerge.scoring.tasks import build_tasks
from evomerge.scoring.tokenized import Slot, TokenizedTasks, reply

_ALONE = "it cannot be told which token sees which; each prompt is forwarded by itself, which is slower"

_WHOLE = "its logits are more than its output embedding's; all are computed, and each prompt by itself: slower"


class Scorer:
    """Tasks built, prompted and tokenized once; scored on a live model as often as asked.

        scorer = Scorer(model, tokenizer, [TaskSpec("tiny_reverse")], include=Path("tasks"))
        while True:
            ...  # overwrite the model's parameters in place
            report = scorer.score()

    Args:
        model: a transformers causal language model. Its parameters may be overwritten in place between calls; its
            structure may not change.
        include: folder of local task YAML files.
        apply_chat_template: whether to wrap prompts in the tokenizer's chat template, few-shot examples as turns.
        batch_tokens: tokens of a batch, padding included; None chooses by device. Halved when memory runs out.
        max_length: tokens of the longest prompt with its answer; None takes what the model's configuration says.
            Give more where something extends the model's context between calls. Longer prompts are cut from the
            left, as lm-eval does.

    Attributes:
        documents: task -> how many documents it has; ids count from 0. A group's tasks appear by their own names.
        groups: the task, group or tag of each spec -> the tasks that it stands for, and what each is in it.
        tasks: name -> the built task.
        shared: whether rows that begin alike are forwarded together. False where the model cannot be told which
            token sees which, and each row is forwarded by itself.
        requests: the requests of all tasks, as token ids.
        full_forward: whether whole logits must be computed, because this model's logits are more than its output
            embedding's.
        max_length: tokens of the longest prompt with its answer.
        cut: task -> how many of its documents lose the left end of some prompt to the maximum length.
        note: what people should be told about all that, a line each; None where there is nothing to tell.

    Raises:
        ConfigError: a task is unknown, named twice, cannot be built, or is of a kind that is not scored; a metric
            cannot be scored, see `groups.members`; or the model has no more positions than its configuration says,
            and more are asked for.
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
        max_length: int | None = None,
    ) -> None:
        if not specs:
            raise ConfigError("fitness", ["it names no task"])
        if max_length is not None:
            _check_length(model, max_length)
        if apply_chat_template and not getattr(tokenizer, "chat_template", None):
            raise ConfigError("fitness", ["apply_chat_template: this tokenizer has no chat template"])
        self._model = model
        with quiet():
            encoder = Encoder(model, tokenizer, max_length)
            template = encoder.apply_chat_template if apply_chat_template else None
            expanded, tasks = build_tasks(specs, include, template)
            self._metrics = {name: Metrics(built) for name, built in tasks.items()}
            self.groups, left_out = members(specs, expanded, self._metrics)
            self.tasks = {name: tasks[name] for own in self.groups.values() for name in own}
            self.requests = requests = TokenizedTasks(encoder, self.tasks)
            self._engine = Engine(model, encoder, requests.likelihoods, requests.generations, batch_tokens)
        self.documents = {name: len(built.documents) for name, built in self.tasks.items()}
        self.shared, self.full_forward = self._engine.shared, self._engine.full_forward
        self.max_length: int = encoder.max_length
        self.cut = {name: self.requests.count_cut(slots) for name, slots in self.requests.slots.items()}
        slow = () if self.shared else (f"{type(model).__name__}: {_WHOLE if self.full_forward else _ALONE}",)
        self.note = "\n".join((*slow, *self._cut_lines(), *left_out)) or None
        self._ascent = Ascent(
            model,
            self.tasks,
            self.requests.likelihoods,
            self.requests.likelihood_numbers(),
            full_forward=self.full_forward,
            batch_tokens=batch_tokens,
        )

    def metrics(self, task: str) -> tuple[str, ...]:
        """The names of a task's metrics that have one number per document: lm-eval's, then the smooth ones."""
        return self._metrics[task].names

    def higher_is_better(self, task: str, metric: str) -> bool:
        """Whether a greater value of the metric is better, as the task says; True for smooth metrics."""
        return self._metrics[task].higher_is_better(metric)

    def document_hashes(self, task: str) -> tuple[str, ...]:
        """The sha256 of each document's own question and answers: equal where two tasks share a document.

        Few-shot examples, the chat template and the order of the choices have no part in it.
        """
        return tuple(document.digest for document in self.tasks[task].documents)

    def score(self, documents: Mapping[str, Sequence[int]] | None = None, answers: Answers | None = None) -> Report:
        """Scores the model's present weights.

        Args:
            documents: task -> ids of the documents to score, in any order; tasks left out are not scored. None: all
                documents of all tasks.
            answers: what these weights have answered before, which is not asked again; new answers are added.

        Raises:
            CandidateError: logits are not finite, memory runs out even for a small batch, or a task's own metric
                code fails on an answer.
        """
        chosen = self._chosen(documents)
        slots = {name: [self.requests.slots[name][at] for at in ids] for name, ids in chosen.items()}
        self._model.eval()
        with quiet(), seeded(self._model.device):
            answered = self._answer([slot for name in slots for one in slots[name] for slot in one], answers)
            tasks = {}
            truncated = {}
            for name, ids in chosen.items():
                replies = [[reply(slot, answered) for slot in one] for one in slots[name]]
                if not all(one.finite for document in replies for one in document):
                    raise CandidateError(f"{name}: the model's logits are not finite (NaN or infinite)")
                responses = [[one.response for one in document] for document in replies]
                tasks[name] = self._metrics[name].score(ids, responses)
                truncated[name] = sum(not one.finished for document in replies for one in document)
        return Report(
            tasks=tasks,
            tokens=answered.tokens,
            padding=answered.padding,
            truncated=truncated,
            cut_prompts={name: self.requests.count_cut(slots[name]) for name in slots},
        )

    def backward(
        self,
        documents: Mapping[str, Sequence[int]],
        terms: Mapping[str, tuple[str, float]],
        attempt: Attempt = nullcontext,
    ) -> Backward:
        """Follows the gradient of F = Σ share · mean of a metric back to the present weights, in one pass.

        ∂F/∂W is added to the `grad` of each parameter that requires one, micro-batch by micro-batch.

        Args:
            documents: task -> ids of the documents to climb, in any order.
            terms: task -> (metric, share), for the same tasks. A metric without a slope is climbed by its stand-in,
                see `scoring.sloped_metrics`.
            attempt: entered around each micro-batch's pass. Where it is left by an exception, what was added inside
                must be forgotten: a pass that runs out of memory is taken again in smaller parts.

        Raises:
            CandidateError: logits are not finite, or memory runs out even for one document.
            ConfigError: a metric has no slope and no stand-in.
            ValueError: a task or document is unknown, or no parameter requires a gradient.
        """
        self._model.eval()
        with quiet(), seeded(self._model.device):
            return self._ascent.run(self._chosen(documents), terms, attempt)

    def _chosen(self, documents: Mapping[str, Sequence[int]] | None) -> dict[str, list[int]]:
        """Task -> ids of the documents that are asked for, ascending, each once; all where None is given."""
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

    def _answer(self, slots: Sequence[Slot], answers: Answers | None) -> Answered:
        """The model's answers to all requests of some slots."""
        likelihoods = [number for slot in slots if slot.kind != "generation" for number in slot.numbers]
        generations = [number for slot in slots if slot.kind == "generation" for number in slot.numbers]
        return self._engine.answer(likelihoods, generations, answers)

    def _cut_lines(self) -> list[str]:
        """One line that says which prompts are cut, for a score on the rest of them looks like any other; or []."""
        tasks = [f"{name} ({count} of {self.documents[name]})" for name, count in self.cut.items() if count]
        if not tasks:
            return []
        what = f"prompts are cut from the left to {self.max_length} tokens, the model's maximum length"
        cure = "shorten the prompts, or extend the model's context and raise max_length with it"
        return [f"{what}: documents of {', '.join(tasks)}; {cure}"]


def _check_length(model: Any, max_length: int) -> None:
    """Refuses positions that the model's table of positions does not have: they would be out of range later.

    Raises:
        ConfigError: the length is below 2, or beyond the table.
    """
    if max_length < 2:
        raise ConfigError("max_length", [f"is {max_length}; give 2 or more"])
    reach = getattr(model.config, "max_position_embeddings", max_length)
    words = model.get_input_embeddings()
    tables = (one for one in model.modules() if isinstance(one, nn.Embedding) and one is not words)
    # OPT's table has two rows more.
    if max_length > reach and any(0 <= one.num_embeddings - reach <= 2 for one in tables):
        fault = f"is {max_length}, but {type(model).__name__} has learned {reach} positions and cannot read further"
        raise ConfigError("max_length", [fault])
