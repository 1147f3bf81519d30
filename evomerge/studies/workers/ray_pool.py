"""A pool that evaluates on Ray actors. This is the only module that imports ray.

A worker lives as long as the study. A candidate that fails is an outcome with its reason. A worker that dies is
replaced, and its candidate is tried again.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeError, WorkerError
from evomerge.searching.objective import Objective
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.candidates.workbench import Workbench
from evomerge.studies.workers.jobs import Job, Outcome, evaluate
from evomerge.studies.workers.resources import Workers, plan_workers


class _Worker:
    """The actor: a workbench in a process of its own."""

    def open(self, setup: Setup) -> tuple[str | None, str | None, Objective]:
        """Makes the workbench.

        Returns:
            What is wrong with the setup, None if nothing is; the workbench's note; and its objective.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
        try:
            self.workbench = Workbench(setup)
        except EvomergeError as error:
            return str(error), None, Objective({})
        return None, self.workbench.note, self.workbench.objective

    def evaluate(self, job: Job) -> Outcome:
        """Does a job on the workbench."""
        return evaluate(self.workbench, job)


class RayPool:
    """Evaluates on Ray actors, each of which has one candidate at a time. See `jobs.Pool`.

    Args:
        config: the experiment's `workers`.
        setup: what every worker's workbench is made from; its device and threads are filled in here.

    Raises:
        WorkerError: Ray or a worker cannot be started.
    """

    def __init__(self, config: Workers, setup: Setup) -> None:
        # Ray reads these when it is imported. GPUs stay visible to the driver's actors only.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        import ray

        self._ray = ray
        self._config = config
        self._started_ray = _start(ray, config)
        cluster = ray.cluster_resources()
        resources = plan_workers(config, int(cluster.get("CPU", 1)), int(cluster.get("GPU", 0)))
        self.size = resources.count
        self._setup = dataclasses.replace(setup, device=resources.device, threads=resources.threads)
        self._actor = ray.remote(_Worker).options(
            num_cpus=0,  # threads are limited by the worker itself; more workers than cores is the user's choice
            num_gpus=1 if resources.device == "cuda" else 0,
            runtime_env={"env_vars": _thread_limits(resources.threads)},
        )
        self.note: str | None = None
        self.objective = Objective({})
        self._actors: list[Any] = []
        try:
            self._idle: deque[Any] = deque(self._open(resources.count))
        except WorkerError:
            self.close()
            raise

    def _open(self, count: int) -> list[Any]:
        """Starts so many actors, and returns them when all are ready."""
        actors = [self._actor.remote() for _ in range(count)]
        self._actors += actors
        try:
            opened = self._ray.get([actor.open.remote(self._setup) for actor in actors])
        except self._ray.exceptions.RayError as error:
            raise WorkerError(f"a worker could not be started: {_cause(error)}") from error
        for fault, note, objective in opened:
            if fault:
                raise WorkerError(fault)
            self.note, self.objective = note, objective
        return actors

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        """Evaluates the jobs. Outcomes come as they are ready."""
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
        """Gives up jobs that have been running for longer than `workers.timeout`, with their actors."""
        limit = self._config.timeout
        if limit is None:
            return
        for future, (actor, job, _, start) in list(running.items()):
            if time.monotonic() - start > limit:
                del running[future]
                self._replace(actor)
                yield Outcome(job.key, reason=f"took longer than workers.timeout, {limit:g} s")

    def _replace(self, actor: Any) -> None:
        """Ends an actor and starts another in its place."""
        self._ray.kill(actor)
        self._actors.remove(actor)
        self._idle.extend(self._open(1))

    def close(self) -> None:
        """Ends the workers, and Ray if this pool started it. A Ray that ran before the pool goes on."""
        if not self._started_ray:
            for actor in self._actors:
                self._ray.kill(actor)
            return
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


def _start(ray: Any, config: Workers) -> bool:
    """Starts Ray, or joins the cluster at the configured address, unless this process has done so already.

    Returns:
        Whether Ray was started or joined here, so that the caller is the one to shut it down.
    """
    if ray.is_initialized():
        return False
    with _guarded() if config.address is None else nullcontext():
        _init(ray, config)
    return True


def _init(ray: Any, config: Workers) -> None:
    """Initializes Ray with its logs turned off.

    Raises:
        WorkerError: Ray cannot be started, or the cluster cannot be reached.
    """
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
    """The environment variables that hold a worker's libraries to so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


def _cause(error: BaseException) -> str:
    """The last line of the error that caused a Ray error."""
    text = str(getattr(error, "cause", None) or error).strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
