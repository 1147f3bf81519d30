"""Ray's workers: equal results, deaths, time-outs. Ray is started once, and most pools share it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from evomerge.errors import ConfigError, WorkerError
from evomerge.recipes.recipe import Recipe
from evomerge.searching.spaces import genes
from evomerge.studies import experiment, study
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.plan import Plan, make_plan
from evomerge.studies.trials import Trial
from evomerge.studies.workers.inline_pool import InlinePool
from evomerge.studies.workers.jobs import Job
from evomerge.studies.workers.opening import open_pool
from evomerge.studies.workers.ray_pool import MARK, RayPool
from evomerge.studies.workers.resources import Resources, Workers, plan_workers
from tests.helpers.family import experiment_mapping
from tests.helpers.studies import Silent, all_that_counts, begin


@pytest.mark.parametrize(
    ("asked", "cores", "gpus", "given"),
    [
        ({}, 8, 0, Resources(8, "cpu", 1)),
        ({"count": 2}, 8, 0, Resources(2, "cpu", 1)),
        ({"count": 2, "threads": 4}, 8, 0, Resources(2, "cpu", 4)),
        ({}, 8, 2, Resources(2, "cuda", 4)),
        ({"gpus": 1}, 8, 2, Resources(1, "cuda", 8)),
        ({"gpus": 0}, 4, 2, Resources(4, "cpu", 1)),
        ({"backend": "inline"}, 8, 0, Resources(1, "cpu", 1)),
    ],
)
def test_auto_means(asked: dict[str, Any], cores: int, gpus: int, given: Resources) -> None:
    assert plan_workers(Workers.model_validate(asked), cores, gpus) == given


@pytest.mark.parametrize(("asked", "message"), [({"gpus": 3}, "workers.gpus: is 3"), ({"count": 4}, "takes one")])
def test_more_than_there_is_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        plan_workers(Workers.model_validate(asked), 8, 2)


@pytest.fixture(scope="module")
def laid(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("workers")
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment_mapping(family, folder / "study")))
    return make_plan(experiment.load_experiment(path))


@pytest.fixture(scope="module")
def recipes(laid: Plan) -> list[Recipe]:
    start = genes.initial(laid.coordinates)
    genomes = [{**start, "density.ant": 0.2 + 0.1 * k} for k in range(6)]
    return [laid.laid.decode(genome) for genome in genomes]


def forgetful(laid: Plan) -> Setup:
    """Without kept answers, so that each pool forwards for itself."""
    return dataclasses.replace(laid.setup(), answers=None)


@pytest.fixture(scope="module")
def pool(laid: Plan) -> Iterator[RayPool]:
    """Two workers, which start Ray as a study does. Tests that need Ray, but not these workers, ask for it too."""
    assert not ray.is_initialized()
    opened = open_pool(Workers(count=2, retries=1), forgetful(laid))
    assert isinstance(opened, RayPool)
    yield opened
    opened.close()
    assert not ray.is_initialized()


def _hashes(outcomes: Any) -> dict[int, str | None]:
    return {outcome.key: outcome.score.weights_sha256 for outcome in outcomes}


@pytest.mark.ray
def test_actors_give_what_this_process_gives_and_survive_death(
    laid: Plan, recipes: list[Recipe], pool: RayPool
) -> None:
    jobs = [Job(key, recipe) for key, recipe in enumerate(recipes)]
    inline = list(InlinePool(forgetful(laid)).run(jobs))
    remote = sorted(pool.run(jobs), key=lambda outcome: outcome.key)
    assert _hashes(remote) == _hashes(inline)
    assert [o.score.measured for o in remote if o.score] == [o.score.measured for o in inline if o.score]

    # A worker is killed as the system's out-of-memory killer would: its candidate is tried again elsewhere.
    victims = _worker_pids(pool)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    again = sorted(pool.run(jobs), key=lambda outcome: outcome.key)
    assert _hashes(again) == _hashes(inline)


def _worker_pids(pool: RayPool) -> list[int]:
    """The processes of a pool's idle actors."""
    pids: list[int] = ray.get([actor.__ray_call__.remote(lambda self: os.getpid()) for actor in pool._idle])
    return pids


@pytest.mark.ray
def test_a_candidate_that_takes_too_long_fails_and_the_rest_goes_on(
    laid: Plan, recipes: list[Recipe], pool: RayPool
) -> None:
    opened = open_pool(Workers(count=1, timeout=3), laid.setup())
    assert isinstance(opened, RayPool)
    try:
        (pid,) = _worker_pids(opened)
        os.kill(pid, signal.SIGSTOP)  # the worker hangs
        started = time.monotonic()
        outcomes = list(opened.run([Job(0, recipes[0]), Job(1, recipes[1])]))
        assert [outcome.key for outcome in outcomes] == [0, 1]
        assert outcomes[0].reason == "took longer than workers.timeout, 3 s"
        assert outcomes[1].score is not None
        assert time.monotonic() - started < 120
        (other,) = _worker_pids(opened)
    finally:
        opened.close()
    # A pool that did not start Ray ends its own workers alone.
    deadline = time.monotonic() + 60
    while Path(f"/proc/{other}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{other}").exists()
    assert len(_worker_pids(pool)) == 2


@pytest.mark.ray
@pytest.mark.usefixtures("pool")
def test_a_fault_in_the_input_is_the_workers_own_message(
    write_experiment: Callable[..., Path], family: Path
) -> None:
    fitness = {"include": str(family / "tasks"), "search": [{"task": "first", "metric": "accuracy"}]}
    laid = make_plan(experiment.load_experiment(write_experiment(fitness=fitness)))
    with pytest.raises(WorkerError, match=r"first: has no metric 'accuracy'\. .*Known: acc"):
        open_pool(Workers(count=1), laid.setup())
    with pytest.raises(ConfigError, match="first: has no metric 'accuracy'"):
        open_pool(Workers(backend="inline"), laid.setup())


@pytest.fixture
def begin_for(write_experiment: Callable[..., Path], tmp_path: Path) -> Callable[..., Plan]:
    """Begins a study for so many workers, of which one is this process: `begin_for(count, **changes)`."""

    def make(count: int, **changes: Any) -> Plan:
        workers = {"backend": "inline"} if count == 1 else {"backend": "ray", "count": count}
        changes = {"study": str(tmp_path / f"study-{count}"), "workers": workers, **changes}
        return begin(write_experiment(f"{count}.yaml", **changes))

    return make


@pytest.mark.ray
def test_one_and_two_workers_give_the_same_study(begin_for: Callable[..., Plan], pool: RayPool) -> None:
    of_one = study.search(begin_for(1), Silent())
    assert len(of_one) >= 14
    of_two = study.Study(begin_for(2), pool, Silent())
    of_two.run()
    assert all_that_counts(of_two.trials) == all_that_counts(of_one)


@pytest.mark.ray
@pytest.mark.usefixtures("pool")
def test_one_two_and_four_workers_give_the_same_study_in_mini_batches(begin_for: Callable[..., Plan]) -> None:
    fidelity = {"batch": 8, "select": 0.25}
    of_one, *others = (study.search(begin_for(count, fidelity=fidelity), Silent()) for count in (1, 2, 4))
    assert len(of_one) >= 14
    assert [trial.role for trial in of_one].count("final") == 1
    for other in others:
        assert all_that_counts(other) == all_that_counts(of_one)


@pytest.mark.ray
def test_without_waiting_a_killed_workers_candidates_end_in_the_log(
    write_experiment: Callable[..., Path], pool: RayPool
) -> None:
    workers = {"backend": "ray", "count": 2}
    fidelity = {"batch": 8, "select": 0.25}
    plan = begin(write_experiment(mode="async", fidelity=fidelity, workers=workers, budget={"candidates": 24}))
    victims = _worker_pids(pool)

    class Murderer(Silent):
        """Kills a worker after five trials."""

        def trial(self, trial: Trial) -> None:
            super().trial(trial)
            if len(self.seen) == 5:
                os.kill(victims[0], signal.SIGKILL)

    running = study.Study(plan, pool, Murderer())
    running.run()
    assert not set(_worker_pids(pool)) >= set(victims), "another has taken its place"
    again = study.Study(plan, pool, Silent())
    again.run()
    searched = [trial for trial in running.trials if trial.role == "search"]
    assert len(searched) == len({(trial.generation, trial.slot) for trial in searched}) == 24
    assert all(trial.value is not None for trial in searched)
    assert running.trials[-1].role == "final"
    assert again.trials == running.trials, "the log is replayed as it is"


def _marked() -> set[int]:
    """Processes that a run has started."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{MARK}=".encode() in (folder / "environ").read_bytes()
        except OSError:
            continue
        if marked:
            found.add(int(folder.name))
    return found


@pytest.mark.ray
def test_a_killed_driver_leaves_no_process_behind(write_experiment: Callable[..., Path]) -> None:
    before = _marked()
    path = write_experiment(workers={"backend": "ray", "count": 1}, budget={"candidates": 500})
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge.cli.main", "run", str(path)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "candidate 2/" in line:
            break
    assert _marked() - before, "Ray's processes carry the mark"
    process.kill()
    process.wait()
    process.stderr.close()
    deadline = time.monotonic() + 60
    while _marked() - before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _marked() - before
