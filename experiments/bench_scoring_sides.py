"""The two sides of the scoring benchmark: stock lm-eval and evomerge's scorer, on one live model."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.evaluator
from bench_scoring_models import Subject
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evomerge.scoring.forward import head
from evomerge.scoring.quiet import quiet
from evomerge.scoring.reports import Report, TaskSpec
from evomerge.scoring.scorer import Scorer

Answers = dict[int, dict[int, Any]]


class _Timed(HFLM):  # type: ignore[misc]
    """lm-eval's HFLM, with a clock around its answering and a note of its answers."""

    spent = 0.0
    answers: Answers

    def _clocked(self, answer: Callable[..., list[Any]], requests: list[Any], **keywords: Any) -> list[Any]:
        start = time.perf_counter()
        found = answer(requests, **keywords)
        self.spent += time.perf_counter() - start
        for request, one in zip(requests, found, strict=True):
            self.answers.setdefault(request.doc_id, {})[request.idx] = one
        return found

    def loglikelihood(self, requests: list[Any], **keywords: Any) -> list[Any]:
        return self._clocked(super().loglikelihood, requests, **keywords)

    def loglikelihood_rolling(self, requests: list[Any], **keywords: Any) -> list[Any]:
        return self._clocked(super().loglikelihood_rolling, requests, **keywords)

    def generate_until(self, requests: list[Any], **keywords: Any) -> list[Any]:
        return self._clocked(super().generate_until, requests, **keywords)


@dataclass(frozen=True)
class StockRun:
    """One call of `simple_evaluate`.

    seconds: whole. inside: in HFLM, without loading and prompting the task. answers: document -> request -> what
    HFLM answered. results: metric -> aggregate.
    """

    seconds: float
    inside: float
    answers: Answers
    results: dict[str, float]


class Stock:
    """`lm_eval.simple_evaluate` with an HFLM and a TaskManager that are made once.

    lm-eval's description of the machine, a part of each call that takes seconds, is left out.
    """

    def __init__(self, subject: Subject, folder: Path) -> None:
        with quiet():
            self._lm = _Timed(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=1)
            self._manager = TaskManager(include_path=str(folder), include_defaults=False)
        lm_eval.evaluator.add_env_info = lambda results: None

    def run(self, task: str, batch: int, limit: int | None = None) -> StockRun:
        """Scores the model's present weights in batches of so many rows."""
        self._lm.batch_size_per_gpu = batch
        self._lm.spent, self._lm.answers = 0.0, {}
        start = time.perf_counter()
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            found = lm_eval.simple_evaluate(
                self._lm,
                tasks=[task],
                task_manager=self._manager,
                bootstrap_iters=0,
                log_samples=False,
                limit=limit,
            )
        seconds = time.perf_counter() - start
        aggregates = {
            name.split(",")[0]: value
            for name, value in found["results"][task].items()
            if name.endswith(",none") and isinstance(value, float | int)
        }
        return StockRun(seconds, self._lm.spent, self._lm.answers, aggregates)


def env_seconds() -> float:
    """What lm-eval's description of the machine takes in each call. To be asked before a Stock is made."""
    start = time.perf_counter()
    lm_eval.evaluator.add_env_info({})
    return time.perf_counter() - start


@dataclass
class Meter:
    """Seconds spent in a model's body and output embedding, nested calls counted once.

    The whole body, its parts and the layers are watched, so that a body run part by part counts too.
    """

    spent: float = 0.0
    _depth: int = 0
    _begun: float = 0.0
    _hooks: list[Any] = field(default_factory=list)

    def enter(self, *_: Any) -> None:
        if self._depth == 0:
            self._begun = time.perf_counter()
        self._depth += 1

    def leave(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.spent += time.perf_counter() - self._begun

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            self.enter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.leave()

        return counted

    @contextlib.contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Counts meanwhile."""
        body = model.base_model
        layers = [layer for part in body.children() if type(part).__name__ == "ModuleList" for layer in part]
        watched = [model, body, *body.children(), *layers, model.get_output_embeddings()]
        hooks = [one.register_forward_pre_hook(self.enter) for one in watched]
        hooks += [one.register_forward_hook(self.leave, always_call=True) for one in watched]
        heads = [
            (module, name, function)
            for function in (head.answer_logprobs, head.full_logprobs)
            for key, module in list(sys.modules.items())
            if key.startswith("evomerge.scoring")
            for name, value in list(vars(module).items())
            if value is function
        ]
        for module, name, function in heads:
            setattr(module, name, self._counted(function))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module, name, function in heads:
                setattr(module, name, function)


@dataclass(frozen=True)
class OurRun:
    """One call of `score`: seconds, those of them in the model's forward passes, and the report."""

    seconds: float
    forward: float
    report: Report


class Ours:
    """A Scorer of one task; how long it took to make."""

    def __init__(self, subject: Subject, folder: Path, task: str) -> None:
        self._model = subject.model
        start = time.perf_counter()
        self.scorer = Scorer(subject.model, subject.tokenizer, [TaskSpec(task)], include=folder)
        self.build_seconds = time.perf_counter() - start

    def run(self) -> OurRun:
        """Scores the model's present weights."""
        meter = Meter()
        with meter.watching(self._model):
            start = time.perf_counter()
            report = self.scorer.score()
            seconds = time.perf_counter() - start
        return OurRun(seconds, meter.spent, report)

    def rows(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Token ids of log-likelihood requests' rows, as lm-eval forwards them; and of prompts to continue."""
        requests = self.scorer.requests
        return [one.row for one in requests.likelihoods], [one.prompt for one in requests.generations]

    def answers(self, task: str) -> list[Any]:
        """What the latest call answered to the first request of each document."""
        scorer: Any = self.scorer
        return [document.instances[0].resps[0] for document in scorer._tasks[task].documents]


def tree_tokens(rows: list[tuple[int, ...]]) -> int:
    """The nodes of the rows' prefix tree: how many distinct prefixes they have."""
    nodes: dict[tuple[int, int], int] = {}
    for row in rows:
        at = 0
        for token in row:
            at = nodes.setdefault((at, token), len(nodes) + 1)
    return len(nodes)
