"""Studies in mini-batches and without waiting, of every sampler, on real models: interrupted, killed, exported."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge import plugins
from evomerge.errors import StudyError
from evomerge.models.live_weights import weights_sha256
from evomerge.results.exporting.folder import export_trial
from evomerge.studies import journal, life, study
from evomerge.studies.candidates.setup import Setup
from evomerge.studies.folder import JOURNAL
from evomerge.studies.plan import Plan
from evomerge.studies.trials import Trial, best_trial
from evomerge.studies.workers.inline_pool import InlinePool
from tests.helpers.family import experiment_mapping
from tests.helpers.registry import write_registry
from tests.helpers.studies import Silent, all_that_counts, begin

pytestmark = pytest.mark.slow

SAMPLERS = plugins.names("samplers")
MINI: dict[str, Any] = {"batch": 8, "select": 0.25}
END = 3  # candidates that the end of a search in mini-batches takes: two looks and the winner on all documents
SPACE: dict[str, Any] = {
    "method": "task_arithmetic",
    "modules": ["attention", "mlp"],
    "genes": {"weight": {"low": 0.0, "high": 1.5, "init": 0.5, "per": ["module", "expert"]}},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "cma": {"population": 4},
    "catcma": {"population": 4},
    "pycma": {"population": 4},
    "gp": {"population": 4, "startup": 12},
    "tpe": {"population": 4, "startup": 4},
    "nsga2": {"population": 4},
    "nsga3": {"population": 4},
    "m2n2": {"population": 4, "archive": 6},
    "map_elites": {"population": 4},
    "random": {"population": 4},
    "qmc": {"population": 4},
    "gradient": {"watch": 2},
}

Lay = Callable[..., Plan]


@pytest.fixture(scope="module")
def bench(family: Path, tmp_path_factory: pytest.TempPathFactory) -> InlinePool:
    """A pool for all studies of this file, which differ in their folders."""
    folder = tmp_path_factory.mktemp("bench")
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment_mapping(family, folder / "study", space=SPACE)))
    return InlinePool(begin(path).setup())


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OptunaHub registry of one small package."""
    return write_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def lay(family: Path, registry: Path, tmp_path: Path) -> Lay:
    """Creates a study in mini-batches: `lay("cma", folder, budget=...)`."""

    def make(sampler: str, folder: str = "study", **changes: Any) -> Plan:
        options = dict(OPTIONS.get(sampler, {}))
        if sampler == "optunahub":
            pytest.importorskip("optunahub")
            options = {"package": "tiny", "registry": str(registry)}
        changes = {
            "space": SPACE,
            "sampler": {"name": sampler, **options},
            "fidelity": MINI,
            "budget": {"candidates": 18},
            **changes,
        }
        path = tmp_path / f"{folder}.yaml"
        path.write_text(yaml.safe_dump(experiment_mapping(family, tmp_path / folder, **changes)))
        return begin(path)

    return make


def run(plan: Plan, pool: InlinePool, stop_after: int | None = None) -> list[Trial]:
    """Runs a study on a pool that others have used."""
    pool.workbench.setup = _of(plan)
    running = study.Study(plan, pool, Silent(stop_after))
    running.run()
    return running.trials


def _of(plan: Plan) -> Setup:
    return dataclasses.replace(plan.setup(), device="cpu")


def test_a_study_in_mini_batches_ends_with_its_winner_on_all_documents(lay: Lay, bench: InlinePool) -> None:
    plan = lay("cma", budget={"documents": 700})
    trials = run(plan, bench)
    final = trials[-1]
    assert {trial.role for trial in trials} == {"search", "select", "final"}
    assert [trial for trial in trials if trial.role == "final"] == [final]
    assert best_trial(trials) == final
    assert final.all_documents
    incumbents = [trial for trial in trials if trial.role == "select" and trial.incumbent]
    assert final.genome == incumbents[-1].genome
    assert not any(trial.all_documents or trial.incumbent for trial in trials if trial.role == "search")
    assert all(len(trial.blocks) >= 2 for trial in trials if trial.role == "search")
    for trial in trials:
        assert trial.value is not None
        assert math.isfinite(trial.value)
        assert all(c.low <= float(trial.genome[c.name]) <= c.high for c in plan.coordinates)
        assert trial.documents > 0
    assert journal.read_trials(plan.folder) == trials
    assert sum(trial.documents for trial in trials) < 700 + 4 * 40


def test_the_winner_of_mini_batches_is_exported_as_it_was_scored(
    lay: Lay, bench: InlinePool, tmp_path: Path, load_model: Callable[[Path], Any]
) -> None:
    plan = lay("cma")
    final = best_trial(run(plan, bench))
    assert final is not None
    assert final.role == "final"
    out = export_trial(plan, final, tmp_path / "out", lambda text: None)
    assert weights_sha256(load_model(out)) == final.weights_sha256


def test_the_final_value_is_that_of_a_study_that_scores_on_all(lay: Lay, bench: InlinePool) -> None:
    final = run(lay("cma"), bench)[-1]
    whole = run(lay("cma", "whole", fidelity={"batch": "all"}, budget={"candidates": 6}), bench)
    same = [trial for trial in whole if trial.recipe == final.recipe]
    start = next(trial for trial in whole if trial.generation == 0)
    # How documents are batched decides the last bits.
    assert all(trial.value == pytest.approx(final.value, rel=1e-5) for trial in same)
    assert all(trial.tasks == final.tasks for trial in same)
    assert final.climbed.keys() == start.climbed.keys()


@pytest.mark.parametrize(("name", "storage"), [*((name, "journal") for name in SAMPLERS), ("random", "sqlite")])
def test_an_interrupted_study_in_mini_batches_goes_on_as_if_it_had_never_stopped(
    name: str, storage: str, lay: Lay, bench: InlinePool
) -> None:
    options: dict[str, Any] = {"budget": {"candidates": 18 + END}, "storage": storage}
    whole = run(lay(name, "whole", **options), bench)
    plan = lay(name, "parts", **options)
    for stop in (2, 7):
        with pytest.raises(KeyboardInterrupt):
            run(plan, bench, stop)
    parts = run(plan, bench)
    assert len(parts) >= 15
    assert parts[-1].role == "final"
    assert all_that_counts(parts) == all_that_counts(whole)
    assert all_that_counts(journal.read_trials(plan.folder)) == all_that_counts(whole)
    assert run(plan, bench) == parts, "what is finished stays as it is"


@pytest.mark.parametrize("name", ["nsga2", "map_elites"])
def test_of_several_objectives_the_log_tells_the_same_as_the_scores(name: str, lay: Lay, bench: InlinePool) -> None:
    fitness = {**experiment_mapping(Path(), Path())["fitness"], "objective": "pareto"}
    fitness["include"] = bench.workbench.setup.fitness.include  # type: ignore[union-attr]
    fidelity = {"batch": "all"}
    whole = run(lay(name, "whole", fitness=fitness, fidelity=fidelity), bench)
    plan = lay(name, "parts", fitness=fitness, fidelity=fidelity)
    for stop in (7, 5):
        with pytest.raises(KeyboardInterrupt):
            run(plan, bench, stop)
    assert all_that_counts(run(plan, bench)) == all_that_counts(whole)


@pytest.mark.parametrize("name", ["cma", "gradient", "m2n2"])
@pytest.mark.parametrize("fidelity", [MINI, {"batch": "all"}], ids=["mini-batches", "all"])
def test_without_waiting_an_interrupted_study_replays_its_log(
    name: str, fidelity: dict[str, Any], lay: Lay, bench: InlinePool
) -> None:
    budget = {"candidates": 18 + (END if fidelity == MINI else 0)}
    options = {"mode": "async", "fidelity": fidelity, "budget": budget}
    whole = run(lay(name, "whole", **options), bench)
    plan = lay(name, "parts", **options)
    for stop in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            run(plan, bench, stop)
    parts = run(plan, bench)
    assert sum(trial.role == "search" for trial in parts) == 18
    assert all_that_counts(parts) == all_that_counts(whole), "one worker leaves no order to chance"


def test_equal_recipes_of_a_mini_batch_cost_once_wherever_the_study_was_stopped(
    lay: Lay, bench: InlinePool
) -> None:
    gene = {"low": 0.1, "high": 0.9, "init": 0.1, "step": 0.4}
    space = {"method": "task_arithmetic", "genes": {"weight": gene}}
    whole = run(lay("random", "whole", space=space), bench)
    assert len({trial.recipe for trial in whole}) == 3
    assert any(trial.documents == 0 for trial in whole)
    for stop in range(3, len(whole), 5):
        plan = lay("random", f"parts-{stop}", space=space)
        with pytest.raises(KeyboardInterrupt):
            run(plan, bench, stop)
        assert all_that_counts(run(plan, bench)) == all_that_counts(whole)


@pytest.mark.parametrize("mode", ["generations", "async"])
def test_what_is_known_already_does_not_end_a_study_early(mode: str, lay: Lay, bench: InlinePool) -> None:
    """All candidates were scored before the study was killed, but none is in its log."""
    options = {"mode": mode, "fidelity": {"batch": "all"}}
    plan = lay("gradient", **options)
    whole = run(plan, bench)
    log = plan.folder / JOURNAL
    log.unlink()
    again = run(plan, bench)
    assert all_that_counts(again) == all_that_counts(whole)


def test_a_budget_without_room_for_the_end_is_refused(lay: Lay, bench: InlinePool) -> None:
    plan = lay("cma", budget={"documents": 40})
    with pytest.raises(StudyError, match="the budget is too small"):
        run(plan, bench)
    life.abandon(plan.folder)
    assert not plan.folder.exists()


def test_a_study_with_trials_in_a_database_is_not_abandoned(lay: Lay, bench: InlinePool) -> None:
    plan = lay("random", storage="sqlite", budget={"candidates": 12})
    trials = run(plan, bench)
    life.abandon(plan.folder)
    assert journal.read_trials(plan.folder) == trials


# --- killed ---


@pytest.fixture
def killed(bench: InlinePool) -> Callable[[Plan, int], int]:
    """Runs a study in a process of its own and kills it with -9 after so many more trials; gives all there are."""

    def kill(plan: Plan, more: int) -> int:
        before = _logged(plan)
        child = os.fork()
        if child == 0:
            try:
                run(plan, bench)
            finally:
                os._exit(0)
        deadline = time.monotonic() + 60
        while _logged(plan) < before + more and time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                return len(journal.read_trials(plan.folder))  # it has come to its end
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return len(journal.read_trials(plan.folder)) if _logged(plan) else 0

    return kill


def _logged(plan: Plan) -> int:
    """How much there is in the log: lines of a file, which are read quickly; trials of a database."""
    path = plan.folder / JOURNAL
    if path.exists():
        return path.read_bytes().count(b"\n")
    return len(journal.read_trials(plan.folder)) if journal.exists(plan.folder) else 0


# What every sampler does after any number of lines of its log, tests/searching/test_search.py proves.
KILLED = ["cma", "catcma"]


@pytest.mark.parametrize("name", KILLED)
def test_kill_9_at_random_moments_changes_nothing_in_mini_batches(
    name: str, lay: Lay, bench: InlinePool, killed: Callable[[Plan, int], int]
) -> None:
    budget = {"candidates": 60 if name == "cma" else 18}
    fidelity = MINI
    whole = run(lay(name, "whole", budget=budget, fidelity=fidelity), bench)
    plan = lay(name, "killed", budget=budget, fidelity=fidelity)
    counts = [killed(plan, random.randint(1, 5)) for _ in range(10 if name == "cma" else 3)]
    assert counts == sorted(counts)
    assert counts[1] < len(whole), f"killed too late to mean anything: {counts}"
    assert all_that_counts(run(plan, bench)) == all_that_counts(whole), f"killed after {counts}"


@pytest.mark.parametrize("storage", ["sqlite", "postgresql"])
@pytest.mark.parametrize("name", KILLED)
def test_kill_9_at_random_moments_changes_nothing_in_a_database(
    name: str,
    storage: str,
    lay: Lay,
    bench: InlinePool,
    killed: Callable[[Plan, int], int],
    request: pytest.FixtureRequest,
) -> None:
    many = name == "cma"
    url = storage if storage == "sqlite" else request.getfixturevalue("server")
    budget = {"candidates": 60 if many else 14}
    whole = run(lay(name, "whole", budget=budget), bench)
    plan = lay(name, "killed", budget=budget, storage=url)
    counts = [killed(plan, random.randint(1, 5) if many else 2) for _ in range(10 if many else 3)]
    assert counts == sorted(counts)
    assert counts[1] < len(whole), f"killed too late to mean anything: {counts}"
    assert all_that_counts(run(plan, bench)) == all_that_counts(whole), f"killed after {counts}"
