"""Who evaluates candidates: this process, or Ray actors. The same call either way.

A worker lives as long as the study. A failed candidate is a value with its reason; a dead worker is replaced
and its candidate tried again. The only module that imports ray.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evomerge.candidate import Score, Setup, Workbench
from evomerge.config import Workers
from evomerge.errors import CandidateError, EvomergeError, StudyError, WorkerError
from evomerge.gradients import Tables
from evomerge.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """A candidate to evaluate. `key` comes back with its outcome.

    Attributes:
        documents: entry of the fitness -> ids of the documents to score; None for all.
        gradient: whether the slope in the recipe's coefficients is wanted.
    """

    key: int
    recipe: Recipe
    documents: Mapping[str, Sequence[int]] | None = None
    gradient: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a score, and the slope if it was wanted; or the reason that there is none."""

    key: int
    score: Score | None = None
    reason: str | None = None
    slope: Tables | None = None


class Pool(Protocol):
    """Evaluates jobs. Outcomes come as they are ready, in any order.

    Attributes:
        size: how many at once. note: what people should know of how they are evaluated, if anything.
        documents: entry of the fitness -> the number of its documents.
    """

    size: int
    note: str | None
    documents: dict[str, int]

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        """Evaluates the jobs, at most `size` at once. The next is taken when a worker is free for it; None says
        that there is none before some outcome is known. An outcome among them comes back as it is."""

    def close(self) -> None:
        """Ends the workers."""


def evaluate(workbench: Workbench, job: Job) -> Outcome:
    """One candidate's outcome. No fault of a candidate gets past this line."""
    documents = None if job.documents is None else workbench.by_task(job.documents)
    try:
        if job.gradient:
            return Outcome(job.key, *_slope(workbench, job.recipe, documents))
        return Outcome(job.key, workbench.evaluate(job.recipe, documents))
    except CandidateError as error:
        return Outcome(job.key, reason=str(error))
    except Exception as error:
        first = str(error).strip().split("\n", 1)[0]
        return Outcome(job.key, reason=f"{type(error).__name__}: {first}")


def _slope(
    workbench: Workbench, recipe: Recipe, documents: Mapping[str, Sequence[int]] | None
) -> tuple[Score, None, Tables]:
    score, tables = workbench.gradient(recipe, documents)
    return score, None, tables


class InlinePool:
    """Evaluates in this process."""

    size = 1

    def __init__(self, setup: Setup) -> None:
        self.workbench = Workbench(setup)
        self.note = self.workbench.note
        self.documents = self.workbench.documents

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        """Evaluates the jobs in their order."""
        for job in jobs:
            if job is None:
                raise StudyError("the sampler waits, but nothing is under way")
            yield job if isinstance(job, Outcome) else evaluate(self.workbench, job)

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class Resources:
    """What each of `count` workers gets."""

    count: int
    device: str
    threads: int


def plan(config: Workers, cores: int, gpus: int) -> Resources:
    """What `auto` means on a machine of so many cores and GPUs.

    Raises:
        WorkerError: more GPUs are asked for than there are.
    """
    use = gpus if config.gpus == "auto" else config.gpus
    if use > gpus:
        raise WorkerError(f"workers.gpus: is {use}, but there are {gpus}; lower it or set it to auto")
    if config.backend == "inline":
        count = 1
    elif config.count == "auto":
        count = use or cores
    else:
        count = config.count
        if use and count > use:
            raise WorkerError(f"workers.count: is {count}, but there are {use} GPUs, and each worker takes one")
    shared = max(1, cores // count) if use else 1
    threads = shared if config.threads == "auto" else config.threads
    return Resources(count, "cuda" if use else "cpu", threads)


def open_pool(config: Workers, setup: Setup) -> Pool:
    """Starts the workers and waits until each is ready.

    Raises:
        EvomergeError: a worker cannot be set up; the message is the worker's own.
    """
    if config.backend == "inline":
        import torch

        resources = plan(config, cores(), torch.cuda.device_count())
        return InlinePool(dataclasses.replace(setup, device=resources.device, threads=resources.threads))
    return RayPool(config, setup)


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """The actor: a workbench in a process of its own."""

    def open(self, setup: Setup) -> tuple[str | None, str | None, dict[str, int]]:
        """Makes the workbench; returns what is wrong with the input, the workbench's note, if anything, and the
        numbers of documents."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
        try:
            self.workbench = Workbench(setup)
        except EvomergeError as error:
            return str(error), None, {}
        return None, self.workbench.note, self.workbench.documents

    def evaluate(self, job: Job) -> Outcome:
        return evaluate(self.workbench, job)


class RayPool:
    """Evaluates on Ray actors, one candidate each at a time.

    Args:
        config: the experiment's `workers`.
        setup: for every worker's workbench; its device and threads are filled in here.
    """

    def __init__(self, config: Workers, setup: Setup) -> None:
        # Read by Ray on import. GPUs stay visible to the driver's actors only.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        import ray

        self._ray = ray
        self._config = config
        _start(ray, config)
        there = ray.cluster_resources()
        resources = plan(config, int(there.get("CPU", 1)), int(there.get("GPU", 0)))
        self.size = resources.count
        self._setup = dataclasses.replace(setup, device=resources.device, threads=resources.threads)
        self._actor = ray.remote(_Worker).options(
            num_cpus=0,  # threads are limited by the worker itself; more workers than cores is the user's choice
            num_gpus=1 if resources.device == "cuda" else 0,
            runtime_env={"env_vars": _thread_limits(resources.threads)},
        )
        self.note: str | None = None
        self.documents: dict[str, int] = {}
        self._idle: deque[Any] = deque(self._open(resources.count))

    def _open(self, count: int) -> list[Any]:
        actors = [self._actor.remote() for _ in range(count)]
        try:
            opened = self._ray.get([actor.open.remote(self._setup) for actor in actors])
        except self._ray.exceptions.RayError as error:
            raise WorkerError(f"a worker could not be started: {_cause(error)}") from error
        for fault, note, documents in opened:
            if fault:
                raise WorkerError(fault)
            self.note, self.documents = note, documents
        return actors

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        """Evaluates the jobs; outcomes come as they are ready."""
        coming = iter(jobs)
        waiting: deque[tuple[Job, int]] = deque()
        running: dict[Any, tuple[Any, Job, int, float]] = {}
        while True:
            while self._idle:
                if not waiting:
                    fresh = next(coming, None)
                    if fresh is None:
                        break
                    if isinstance(fresh, Outcome):
                        yield fresh
                        continue
                    waiting.append((fresh, 0))
                actor, (job, tries) = self._idle.popleft(), waiting.popleft()
                running[actor.evaluate.remote(job)] = (actor, job, tries, time.monotonic())
            if not running:
                return
            ready, _ = self._ray.wait(list(running), num_returns=1, timeout=1.0)
            for future in ready:
                actor, job, tries, _ = running.pop(future)
                try:
                    outcome = self._ray.get(future)
                except self._ray.exceptions.RayError as error:
                    self._replace(actor)
                    if tries < self._config.retries:
                        waiting.appendleft((job, tries + 1))
                        continue
                    outcome = Outcome(job.key, reason=f"its worker died {tries + 1} times: {_cause(error)}")
                else:
                    self._idle.append(actor)
                yield outcome
            yield from self._overdue(running)

    def _overdue(self, running: dict[Any, tuple[Any, Job, int, float]]) -> Iterator[Outcome]:
        limit = self._config.timeout
        if limit is None:
            return
        for future, (actor, job, _, start) in list(running.items()):
            if time.monotonic() - start > limit:
                del running[future]
                self._replace(actor)
                yield Outcome(job.key, reason=f"took longer than workers.timeout, {limit:g} s")

    def _replace(self, actor: Any) -> None:
        self._ray.kill(actor)
        self._idle.extend(self._open(1))

    def close(self) -> None:
        """Ends the workers and Ray."""
        self._ray.shutdown()
        while _guards:
            _guards.pop().communicate()


# Ray's helper processes outlive a driver that is killed with -9. This one waits for the driver's end, however it
# comes, and then ends every process that carries the mark of its run.
_GUARD = """
import os, signal, sys
sys.stdin.buffer.read()
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{name}/environ", "rb") as file:
            marked = sys.argv[1].encode() in file.read().split(b"\\0")
        if marked and int(name) != os.getpid():
            os.kill(int(name), signal.SIGKILL)
    except OSError:
        pass
"""
MARK = "EVOMERGE_RUN"


@contextmanager
def _guarded() -> Iterator[None]:
    """Marks the processes started inside, and starts the guard that ends them after this process."""
    if not Path("/proc/self/environ").exists():
        yield
        return
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]
    guard = [sys.executable, "-c", _GUARD, f"{MARK}={mark}"]
    # Left open on purpose: the pipe closes with this process.
    _guards.append(subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True))


_guards: list[subprocess.Popen[bytes]] = []


def _start(ray: Any, config: Workers) -> None:
    if ray.is_initialized():
        return
    with _guarded() if config.address is None else nullcontext():
        _init(ray, config)


def _init(ray: Any, config: Workers) -> None:
    try:
        ray.init(
            address=config.address,
            include_dashboard=False if config.address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {config.address}" if config.address else "on this machine"
        raise WorkerError(f"workers: Ray cannot be started {where}: {_cause(error)}") from error


def _thread_limits(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


def _cause(error: BaseException) -> str:
    text = str(getattr(error, "cause", None) or error).strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
