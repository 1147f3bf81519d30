"""The course of a search on an analytic, noisy problem: interrupted, failing, without waiting."""

from __future__ import annotations

import heapq
import math
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge import plugins
from evomerge.errors import ConfigError, StudyError
from evomerge.searching.asynchronous import run_async
from evomerge.searching.documents import Documents, Fidelity
from evomerge.searching.host import Assignment, Evaluation, Line, Reserve
from evomerge.searching.maximize import maximize
from evomerge.searching.samplers import Generation, Problem, Result
from evomerge.searching.search import Search
from evomerge.searching.spaces.genes import Coordinate, Genome, initial
from tests.helpers.objectives import Entry, objective_of
from tests.helpers.registry import write_registry

SAMPLERS = plugins.names("samplers")
COORDINATES = [
    Coordinate("a", 0.0, 1.0, 0.2, log=False),
    Coordinate("b", 0.01, 1.0, 0.1, log=True),
    Coordinate("c", -1.0, 1.0, 0.5, log=False),
    Coordinate("d", 0.0, 1.0, "poor", False, ("poor", "better")),
]
ENTRIES = [Entry("maths", 40, 0.6), Entry("code", 24, 0.3), Entry("tiny", 3, 0.1)]
STARTS: list[Genome] = [
    {**initial(COORDINATES), "a": a, "c": c} for a, c in ((0.2, 0.5), (0.9, 0.5), (0.5, -0.5), (0, 0))
]
MINI = {"batch": 8, "select": 0.25}
END = 3  # candidates that the end of a search in mini-batches takes at most: two looks, and the final score


class World:
    """Documents that a point answers the better the nearer it is to an optimum, each with a taste of its own."""

    def __init__(self, entries: Sequence[Entry], noise: float = 0.5) -> None:
        random = np.random.default_rng(7)
        self.optimum = np.array([0.7, 0.4, -0.2])
        self.tastes = {entry.name: noise * random.standard_normal((entry.documents, 3)) for entry in entries}

    def scores(self, genome: Genome, name: str, ids: Sequence[int]) -> np.ndarray:
        """Of so many documents, float64 (documents,)."""
        away = self._away(genome)
        choice = 0.2 if genome["d"] == "better" else 0.0
        return np.asarray(choice - away @ away + self.tastes[name][list(ids)] @ away)

    def gradient(self, genome: Genome, name: str, ids: Sequence[int]) -> dict[str, float]:
        slope = -2 * self._away(genome) + self.tastes[name][list(ids)].mean(axis=0)
        slope[1] /= float(genome["b"]) * math.log(10) * 2
        return dict(zip("abc", map(float, slope), strict=True))

    def _away(self, genome: Genome) -> np.ndarray:
        b = 1 + math.log10(float(genome["b"])) / 2
        return np.asarray(np.array([float(genome["a"]), b, float(genome["c"])]) - self.optimum)


class Host:
    """A study in memory, whose workers take a random time.

    Args:
        log: what was found before.
        fails: genome -> whether it cannot be scored.
        dies_after: lines, after which it is interrupted.
        workers: at once; the first-come order of their answers is drawn from `speeds`.
        deaths: share of the evaluations whose worker dies, so that they are tried again.
    """

    def __init__(
        self,
        log: Sequence[Line] = (),
        *,
        entries: Sequence[Entry] = ENTRIES,
        candidates: float = math.inf,
        budget: float = math.inf,
        fails: Callable[[Genome], bool] = lambda genome: False,
        dies_after: int | None = None,
        workers: int = 1,
        speeds: int = 0,
        deaths: float = 0.0,
    ) -> None:
        self.lines = list(log)
        self.entries, self.world = entries, World(entries)
        self.candidates, self.budget, self.fails, self.left = candidates, budget, fails, dies_after
        self.workers, self.random, self.deaths = workers, np.random.default_rng(speeds), deaths
        self.tasks: list[Assignment] = []
        self.begun: list[tuple[int, int]] = []

    def log(self) -> Sequence[Line]:
        return self.lines

    def evaluate(self, tasks: Iterable[Assignment | None]) -> Iterator[tuple[int, Evaluation]]:
        coming = iter(tasks)
        running: list[tuple[float, int, Assignment]] = []
        now = 0.0
        while True:
            while len(running) < self.workers and (task := next(coming, None)) is not None:
                heapq.heappush(running, (now + self.random.exponential(), task.key, task))
            if not running:
                return
            now, key, task = heapq.heappop(running)
            if self.random.random() < self.deaths:
                heapq.heappush(running, (now + self.random.exponential(), key, task))
                continue
            yield key, self.answer(task)

    def answer(self, task: Assignment) -> Evaluation:
        self.tasks.append(task)
        if self.fails(task.genome):
            return Evaluation(reason="it is broken")
        chosen = task.documents or {entry.name: list(range(entry.documents)) for entry in self.entries}
        scores = {name: self.world.scores(task.genome, name, ids) for name, ids in chosen.items()}
        named = [entry for entry in self.entries if entry.name in scores]
        total = sum(entry.weight for entry in named)
        value = float(sum(entry.weight * scores[entry.name].mean() for entry in named) / total)
        gradient: dict[str, float] | None = None
        if task.gradient:
            slopes = {name: self.world.gradient(task.genome, name, ids) for name, ids in chosen.items()}
            gradient = {g: sum(entry.weight * slopes[entry.name][g] for entry in named) / total for g in "abc"}
        return Evaluation(scores, value, gradient)

    def keep(self, line: Line) -> Line:
        self.lines.append(replace(line, evaluation=None))
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                raise KeyboardInterrupt
        return line

    def room(self, wanted: int, *, begun: bool, reserve: Reserve) -> int:
        room = min(wanted, self.candidates - len(self.lines) - reserve.candidates)
        if not begun and self.spent + reserve.documents >= self.budget:
            room = 0
        return int(max(room, 0))

    def begin(self, generation: int, size: int) -> None:
        self.begun.append((generation, size))

    @property
    def spent(self) -> int:
        return sum(line.documents for line in self.lines)

    @property
    def found(self) -> list[Line]:
        return [line for line in self.lines if line.role == "search"]


OPTIONS: dict[str, dict[str, Any]] = {
    "gp": {"population": 1, "startup": 8},
    "tpe": {"population": 4, "startup": 4},
    "nsga2": {"population": 6},
    "nsga3": {"population": 6},
    "m2n2": {"population": 6, "archive": 6},
    "map_elites": {"population": 6},
    "random": {"population": 6},
    "qmc": {"population": 8},
    "gradient": {"watch": 2},
}


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OptunaHub registry of one small package."""
    return write_registry(tmp_path_factory.mktemp("registry"))


SLOW = {"gp", "tpe", "nsga2", "nsga3", "optunahub"}  # a proposal of theirs takes milliseconds

Open = Callable[..., Search]
RUNS: dict[str, Callable[[Search], None]] = {"run": Search.run, "async": run_async}


@pytest.fixture(autouse=True)
def no_threads_to_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for the libraries whose threads are limited takes longer than these searches."""
    monkeypatch.setattr("evomerge.searching.samplers._alone.threadpool_limits", lambda limits: nullcontext())


@pytest.fixture
def open_search(registry: Path) -> Open:
    """Opens a search by the name of its sampler, made anew: `open_search(name, host, fidelity, **options)`."""

    def make(name: str, host: Host, fidelity: Mapping[str, Any] = MINI, **options: Any) -> Search:
        if name == "optunahub":
            pytest.importorskip("optunahub")
            options = {"package": "tiny", "registry": registry, **options}
        module = plugins.load("samplers", name)
        choice = module.Options.model_validate({**OPTIONS.get(name, {}), **options})
        sampler = module.make(Problem(COORDINATES, 3, STARTS), choice)
        return Search(module, sampler, objective_of(host.entries), 3, Fidelity.model_validate(fidelity), host)

    return make


def some_fail(genome: Genome) -> bool:
    """About one in six, always the same."""
    return round(float(genome["a"]) * 1e6) % 6 == 1


def scored(line: Line) -> float:
    """The value of a line that has one."""
    assert line.value is not None
    return line.value


def consistent(lines: Sequence[Line]) -> None:
    """What holds of every log."""
    places = Counter((line.generation, line.slot, line.role) for line in lines)
    assert max(places.values()) == 1
    for line in lines:
        for c in COORDINATES:
            value = line.genome[c.name]
            assert value in c.choices if c.choices else c.low <= float(value) <= c.high
        assert (line.value is None) == (line.reason is not None)
        assert line.value is None or math.isfinite(line.value)


# --- going on ---

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "the default": ("cma", {}, {}),
    "without adapting": ("cma", {"adapt": False}, {}),
    "without looks": ("cma", {"select": 0.0}, {}),
    "without a final": ("cma", {"final": False}, {}),
    "a gradient phase": ("cma", {}, {"gradient": 4}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fails", [lambda genome: False, some_fail], ids=["sound", "failing"])
def test_a_search_goes_on_from_any_line_of_its_log_as_if_it_had_never_stopped(
    case: str, fails: Callable[[Genome], bool], open_search: Open
) -> None:
    name, fidelity, options = CASES[case]
    fidelity = {**MINI, **fidelity}
    limits: dict[str, Any] = {"budget": 500, "fails": fails}
    whole = Host(**limits)
    open_search(name, whole, fidelity, **options).run()
    roles = Counter(line.role for line in whole.lines)
    assert roles["final"] == fidelity.get("final", True)
    assert (roles["select"] > 0) == (fidelity["select"] > 0)
    assert any(line.value is None for line in whole.lines) == (fails is some_fail)
    consistent(whole.lines)
    for count in range(0, len(whole.lines), 3 if fails is some_fail else 1):
        again = Host(whole.lines[:count], **limits)
        open_search(name, again, fidelity, **options).run()
        assert again.lines == whole.lines, f"it went on after {count} lines"


@pytest.mark.parametrize("fidelity", [MINI, {"batch": "all"}], ids=["mini-batches", "all"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_goes_on_exactly_from_any_line(
    name: str, fidelity: dict[str, Any], open_search: Open
) -> None:
    candidates = 8 if name == "gp" else 26
    options = {"startup": 4} if name == "gp" else {}
    limits: dict[str, Any] = {"candidates": candidates, "fails": some_fail}
    whole = Host(**limits)
    open_search(name, whole, fidelity, **options).run()
    consistent(whole.lines)
    assert len(whole.found) >= candidates / 2
    for count in range(len(whole.lines)):
        again = Host(whole.lines[:count], **limits)
        open_search(name, again, fidelity, **options).run()
        assert again.lines == whole.lines, f"it went on after {count} lines"


def test_one_that_is_interrupted_at_every_line_comes_to_the_same(open_search: Open) -> None:
    whole = Host(budget=500)
    open_search("cma", whole).run()
    log: list[Line] = []
    for _ in range(len(whole.lines)):
        parts = Host(log, budget=500, dies_after=1)
        with pytest.raises(KeyboardInterrupt):
            open_search("cma", parts).run()
        log = parts.lines
    assert log == whole.lines
    done = Host(log, budget=500)
    open_search("cma", done).run()
    assert done.lines == whole.lines, "what is finished stays as it is"
    assert done.begun == []


def test_equal_seeds_give_equal_searches_and_others_do_not() -> None:
    world = World([Entry("documents", 100, 1.0)])

    def score(genome: Genome, ids: Sequence[int]) -> np.ndarray:
        return world.scores(genome, "documents", ids)

    found = [
        maximize(score, COORDINATES, 100, budget=2000, seed=seed, fidelity=Fidelity(batch=8)) for seed in (0, 0, 1)
    ]
    assert found[0].lines == found[1].lines
    assert found[0].best == found[1].best
    assert [line.genome for line in found[2].lines] != [line.genome for line in found[0].lines]


def test_a_log_of_another_sampler_is_refused(open_search: Open) -> None:
    whole = Host(candidates=20)
    open_search("cma", whole).run()
    with pytest.raises(StudyError, match="is not what this sampler proposes"):
        open_search("random", Host(whole.lines, candidates=40)).run()
    with pytest.raises(StudyError, match="is not what this sampler proposes"):
        run_async(open_search("random", Host(whole.lines, candidates=40)))
    with pytest.raises(StudyError, match="is not what this sampler proposes"):
        run_async(open_search("cma", Host(whole.lines, candidates=40), population=4))


# --- documents ---


def test_all_of_a_generation_see_the_same_fresh_documents_and_none_that_are_kept_apart(open_search: Open) -> None:
    host = Host(candidates=40)
    open_search("cma", host).run()
    documents = Documents(objective_of(ENTRIES), 3, 8, 0.25)
    apart = documents.select()
    search = [task.documents for task in host.tasks if task.documents is not None]
    fresh = [one for one in search if not all(set(ids) <= set(apart.get(name, ())) for name, ids in one.items())]
    assert len(fresh) == len(host.found)
    for chosen in fresh:
        assert all(not set(ids) & set(apart.get(name, ())) for name, ids in chosen.items())
    of_generation: dict[int, list[Any]] = {}
    for line, chosen in zip(host.found, fresh, strict=True):
        of_generation.setdefault(line.generation, []).append(chosen)
    assert all(one == chosen[0] for chosen in of_generation.values() for one in chosen)
    assert of_generation[1][0] != of_generation[2][0]


def test_one_that_remembers_values_sees_the_same_documents_in_every_generation(open_search: Open) -> None:
    host = Host(candidates=40)
    open_search("tpe", host).run()
    apart = {str(Documents(objective_of(ENTRIES), 3, 8, 0.25).select())}
    seen = {str(task.documents) for task in host.tasks if task.documents is not None} - apart
    assert len(seen) == 1


def test_the_value_is_the_weighted_mean_of_the_entries(open_search: Open) -> None:
    host = Host(candidates=12)
    open_search("random", host, {"batch": "all"}).run()
    for line in host.lines:
        means = [host.world.scores(line.genome, e.name, range(e.documents)).mean() for e in ENTRIES]
        assert line.objectives == pytest.approx(means)
        assert line.value == pytest.approx(0.6 * means[0] + 0.3 * means[1] + 0.1 * means[2])
        assert line.all_documents
        assert line.documents == 67


def test_blocks_of_a_line_tell_its_value_on_each(open_search: Open) -> None:
    host = Host(candidates=30)
    open_search("cma", host, {**MINI, "adapt": False}).run()
    documents = Documents(objective_of(ENTRIES), 3, 8, 0.25)
    line = next(line for line in host.found if line.generation == 1)
    first = len(host.found[0].blocks)
    for number, value in enumerate(line.blocks, first):
        block = documents.draw(number)
        scores = {name: host.world.scores(line.genome, name, ids) for name, ids in block.items()}
        assert value == pytest.approx(
            objective_of(ENTRIES).value(scores), rel=1e-12
        )  # the world rounds by its batch


def test_fewer_documents_than_a_batch_are_all_seen(open_search: Open) -> None:
    entries = [Entry("few", 5, 0.5), Entry("fewer", 2, 0.5)]
    host = Host(entries=entries, candidates=20)
    open_search("cma", host).run()
    assert all(line.all_documents and line.documents == 7 for line in host.lines)
    assert {line.role for line in host.lines} == {"search"}
    host = Host(entries=entries, candidates=20)
    open_search("cma", host, {"batch": 6, "select": 0.25}).run()
    consistent(host.lines)
    assert host.lines[-1].role == "final"


def test_the_final_trial_is_the_incumbent_on_all_documents(open_search: Open) -> None:
    host = Host(budget=2500)
    open_search("cma", host).run()
    final = host.lines[-1]
    incumbents = [line for line in host.lines if line.role == "select" and line.incumbent]
    assert final.role == "final"
    assert final.all_documents
    assert final.incumbent
    assert final.genome == incumbents[-1].genome
    assert (
        final.documents
        == sum(entry.documents for entry in ENTRIES) - Documents(objective_of(ENTRIES), 3, 8, 0.25).selecting
    )
    losers = [line for line in host.lines if line.role == "select" and not line.incumbent]
    values = [scored(line) for line in incumbents]
    assert values == sorted(values), "each is better than the one before, on the same documents"
    assert all(line.documents <= incumbents[0].documents for line in losers)


def test_a_longer_search_keeps_what_the_shorter_one_held_to_be_best(open_search: Open) -> None:
    whole, parts = Host(candidates=70), Host(candidates=40)
    open_search("cma", whole).run()
    open_search("cma", parts).run()
    parts.candidates = 70
    open_search("cma", parts).run()
    count = len(parts.found)
    assert [(line.genome, line.value) for line in parts.found] == [
        (line.genome, line.value) for line in whole.found[:count]
    ]
    values = [scored(line) for line in parts.lines if line.role == "select" and line.incumbent]
    assert values == sorted(values)
    again = Host(parts.lines, candidates=70)
    open_search("cma", again).run()
    assert again.lines == parts.lines


# --- the budget ---


@pytest.mark.parametrize("name", ["cma", "gradient", "tpe"])
@pytest.mark.parametrize("budget", [600, 1000, 1601])
def test_a_budget_in_documents_holds_the_search_and_its_end(name: str, budget: int, open_search: Open) -> None:
    host = Host(budget=budget)
    open_search(name, host).run()
    last = sum(line.documents for line in host.found if line.generation == host.found[-1].generation)
    looks = [line.documents for line in host.lines if line.role == "select"]
    assert host.lines[-1].role == "final"
    assert host.spent <= budget + last + max(looks), "the generation that reaches the limit is the last"
    assert host.spent >= budget - 150


@pytest.mark.parametrize("candidates", [4, 10, 11, 37])
def test_a_budget_in_candidates_is_kept(candidates: int, open_search: Open) -> None:
    host = Host(candidates=candidates)
    open_search("cma", host, {"batch": "all"}).run()
    assert len(host.lines) == candidates
    host = Host(candidates=candidates)
    if candidates < 4 + 1 + 3:  # the first generation, a look after it, and the end
        message = "takes 4 candidates to begin with and 3 candidates and 84 documents .* to 8 candidates at least"
        with pytest.raises(StudyError, match=message):
            open_search("cma", host).run()
        least = Host(candidates=8)
        open_search("cma", least).run()
        assert least.lines
        return
    open_search("cma", host).run()
    assert candidates - 12 < len(host.lines) <= candidates, "looks and the final score count"
    assert host.lines[-1].role == "final"
    sizes = Counter(line.generation for line in host.found)
    assert all(size == (4 if number == 0 else 8) for number, size in sizes.items()), "of whole generations"


@pytest.mark.parametrize(
    ("limits", "mode"), [({"candidates": 3}, "run"), ({"budget": 50}, "run"), ({"budget": 50}, "async")]
)
def test_a_budget_without_room_for_a_beginning_is_refused(
    limits: dict[str, Any], mode: str, open_search: Open
) -> None:
    host = Host(**limits)
    with pytest.raises(
        StudyError, match=r"the budget is too small: .* documents for its end; raise it to \d+ cand"
    ):
        RUNS[mode](open_search("cma", host))
    assert host.lines == []


# --- failures ---


def test_a_generation_that_fails_whole_says_why_and_goes_on_once_the_cause_is_gone(open_search: Open) -> None:
    for fidelity in (MINI, {"batch": "all"}):
        host = Host(candidates=60)
        host.fails = lambda genome, host=host: len(host.found) >= 12  # type: ignore[misc]
        with pytest.raises(StudyError, match=r"(?s)all 8 candidates of generation 2 failed:\n  it is broken"):
            open_search("cma", host, fidelity).run()
        assert len(host.found) == 20
        mended = Host(host.lines, candidates=60)
        open_search("cma", mended, fidelity).run()
        assert len(mended.lines) >= 55
        again = Host(mended.lines[:31], candidates=60)
        open_search("cma", again, fidelity).run()
        assert again.lines == mended.lines


@pytest.mark.parametrize("name", ["gradient", "cma"])
@pytest.mark.parametrize("mode", ["run", "async"])
def test_a_lone_candidate_that_fails_does_not_end_the_search(name: str, mode: str, open_search: Open) -> None:
    options = {"gradient": 6} if name == "cma" else {}

    def fails(genome: Genome) -> bool:
        return genome not in STARTS and float(genome["a"]) > 0.35

    host = Host(candidates=40, fails=fails)
    RUNS[mode](open_search(name, host, **options))
    lone = [line for line in host.found if line.gradient is None and line.generation and line.value is None]
    assert lone
    assert len(host.lines) > 40 - 8, "only a generation of 8 that does not fit is left out"
    again = Host(host.lines[: len(host.lines) // 2], candidates=40, fails=fails)
    RUNS[mode](open_search(name, again, **options))
    assert again.lines == host.lines


@pytest.mark.parametrize("mode", ["run", "async"])
def test_lone_candidates_that_all_fail_end_the_search_and_it_can_go_on(mode: str, open_search: Open) -> None:
    host = Host(candidates=60)
    host.fails = lambda genome: len(host.found) >= 8
    with pytest.raises(StudyError, match="it is broken"):
        RUNS[mode](open_search("gradient", host))
    assert sum(line.value is None for line in host.lines) == 4
    mended = Host(host.lines, candidates=60)
    RUNS[mode](open_search("gradient", mended))
    assert len(mended.found) > 40


def test_a_look_at_a_candidate_that_fails_changes_nothing(open_search: Open) -> None:
    class Shy(Host):
        """Never answers alone, as looks are asked."""

        def evaluate(self, tasks: Iterable[Assignment | None]) -> Iterator[tuple[int, Evaluation]]:
            listed = list(tasks)
            if len(listed) == 1 and listed[0] is not None and listed[0].documents is not None:
                yield listed[0].key, Evaluation(reason="shy")
            else:
                yield from super().evaluate(listed)

    host = Shy(candidates=40)
    open_search("cma", host).run()
    looks = [line for line in host.lines if line.role == "select"]
    assert looks
    assert all(line.reason == "shy" and not line.incumbent for line in looks)
    assert all(line.role != "final" for line in host.lines), "nothing was chosen"


# --- without waiting ---


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_without_waiting_any_prefix_of_the_log_is_replayed_and_gone_on_from(name: str, open_search: Open) -> None:
    candidates = 10 if name == "gp" else 20 if name in SLOW else 40
    whole = Host(candidates=candidates, workers=3, fails=some_fail)
    run_async(open_search(name, whole))
    consistent(whole.lines)
    assert len(whole.lines) <= candidates
    assert len(whole.found) == candidates - END
    for count in range(candidates + 1 - END):
        again = Host(whole.lines[:count], candidates=candidates, workers=3, speeds=count + 1, fails=some_fail)
        run_async(open_search(name, again))
        assert again.lines[:count] == whole.lines[:count], "nothing is lost"
        assert len(again.lines) <= candidates
        assert len(again.found) == candidates - END
        consistent(again.lines)


def test_without_waiting_results_enter_as_they_come_and_the_log_keeps_the_order(open_search: Open) -> None:
    host = Host(candidates=60, workers=4)
    run_async(open_search("cma", host))
    places = [(line.generation, line.slot) for line in host.found]
    assert places != sorted(places)
    for at, line in enumerate(host.found):
        assert line.log_length_when_asked <= at
    overlapping = [line for line in host.found if line.generation > 0 and line.log_length_when_asked % 4]
    assert overlapping, "generations were asked for in mid-air of others"


def test_one_killed_again_and_again_without_waiting_loses_nothing(open_search: Open) -> None:
    for seed in range(3):
        random = np.random.default_rng(seed)
        log: list[Line] = []
        for _ in range(12):
            host = Host(
                log,
                candidates=70,
                workers=4,
                speeds=int(random.integers(1000)),
                dies_after=int(random.integers(1, 9)),
            )
            with pytest.raises(KeyboardInterrupt):
                run_async(open_search("cma", host))
            assert host.lines[: len(log)] == log
            log = host.lines
        done = Host(log, candidates=70, workers=4)
        run_async(open_search("cma", done))
        assert len(done.found) == 70 - END
        consistent(done.lines)
        replayed = Host(done.lines, candidates=70)
        run_async(open_search("cma", replayed))
        assert replayed.lines == done.lines


def test_a_generation_of_which_nothing_came_is_asked_for_again(open_search: Open) -> None:
    host = Host(candidates=60, workers=4)
    run_async(open_search("cma", host))
    # All of generation 2 was under way when the search was killed.
    cut = next(at for at, line in enumerate(host.lines) if line.generation == 4)
    log = [line for line in host.lines[: cut + 1] if line.generation != 2]
    first = next(at for at, line in enumerate(log) if line.generation >= 3)
    known = {3: first, 4: len(log) - 1}
    short = Host(candidates=first, workers=1)
    run_async(open_search("cma", short, {**MINI, "final": False}))
    log = short.found
    again = Host(log, candidates=60, workers=4)
    run_async(open_search("cma", again))
    assert known
    assert len(again.found) == 60 - END
    assert {line.generation for line in again.found} == set(range(max(line.generation for line in again.found) + 1))


def test_without_waiting_a_dead_workers_candidate_is_tried_again(open_search: Open) -> None:
    host = Host(candidates=50, workers=3, deaths=0.3)
    run_async(open_search("cma", host))
    assert len(host.found) == 50 - END
    consistent(host.lines)


@pytest.mark.parametrize("workers", [1, 4])
def test_one_that_waits_for_its_results_does_not_stop_idle_workers_for_good(
    workers: int, open_search: Open
) -> None:
    host = Host(candidates=40, workers=workers)
    run_async(open_search("gradient", host))
    assert len(host.found) == 40 - END
    assert host.lines[-1].role == "final"


def test_a_sampler_that_waits_for_nothing_is_an_error(open_search: Open) -> None:
    class Lazy:
        def ask(self, number: int) -> Generation:
            return Generation([])

        def tell(self, number: int, results: Sequence[Result]) -> None: ...

        def recommend(self) -> None: ...

    for mode in ("run", "async"):
        host = Host(candidates=10)
        search = Search(plugins.load("samplers", "cma"), Lazy(), objective_of(ENTRIES), 0, Fidelity(), host)
        with pytest.raises(StudyError, match=r"nothing to propose|nothing is under way"):
            RUNS[mode](search)


def test_without_waiting_one_worker_gives_what_waiting_gives(open_search: Open) -> None:
    hosts = Host(candidates=44), Host(candidates=44)
    fidelity = {"batch": "all"}
    open_search("cma", hosts[0], fidelity).run()
    run_async(open_search("cma", hosts[1], fidelity))
    assert hosts[0].lines == hosts[1].lines


def test_a_log_with_gaps_is_not_gone_on_from_in_generations(open_search: Open) -> None:
    host = Host(candidates=40, workers=4)
    run_async(open_search("cma", host))
    count = next(n for n in range(len(host.lines)) if _torn(host.lines[:n]))
    with pytest.raises(StudyError, match="go on in that"):
        open_search("cma", Host(host.lines[:count], candidates=80)).run()


def _torn(lines: Sequence[Line]) -> bool:
    slots = [line.slot for line in lines if lines and line.generation == 0]
    return slots != list(range(len(slots)))


# --- a fitness of one's own ---


def quadratic(
    seed: int,
) -> tuple[Callable[[Genome, Sequence[int]], np.ndarray], Callable[[Genome], float], list[Coordinate]]:
    """A noisy fitness of 10 dimensions, the same without noise, and its coordinates."""
    random = np.random.default_rng(seed)
    centre = random.uniform(0.2, 0.8, 10)
    tastes = random.standard_normal((1000, 10))
    coordinates = [Coordinate(f"x{at}", 0.0, 1.0, 0.5, log=False) for at in range(10)]

    def away(genome: Genome) -> np.ndarray:
        return np.array([float(genome[c.name]) for c in coordinates]) - centre

    def score(genome: Genome, ids: Sequence[int]) -> np.ndarray:
        return np.asarray(-(away(genome) ** 2).sum() + 0.3 * tastes[list(ids)] @ away(genome))

    return score, lambda genome: -float((away(genome) ** 2).sum()), coordinates


def test_the_default_finds_a_noisy_optimum_better_than_chance_at_equal_documents() -> None:
    found: dict[str, list[float]] = {"cma": [], "random": []}
    for seed in range(5):
        score, truth, coordinates = quadratic(seed)
        for name, values in found.items():
            result = maximize(score, coordinates, 1000, sampler=name, budget=12_000, seed=seed)
            assert 11_500 <= result.documents <= 17_000
            values.append(truth(result.best))
    start = np.median([quadratic(seed)[1](initial(quadratic(seed)[2])) for seed in range(5)])
    assert np.median(found["cma"]) > np.median(found["random"]) / 3
    assert np.median(found["cma"]) > start / 5


def test_a_score_that_is_no_number_fails_its_candidate_alone() -> None:
    score, _, coordinates = quadratic(0)

    def sometimes(genome: Genome, ids: Sequence[int]) -> np.ndarray:
        return score(genome, ids) * (np.nan if float(genome["x0"]) > 0.6 else 1.0)

    found = maximize(sometimes, coordinates, 1000, budget=4000)
    assert any(line.reason == "a score is not finite" for line in found.lines)
    assert float(found.best["x0"]) <= 0.6


def test_what_cannot_be_maximized_is_refused() -> None:
    score, _, coordinates = quadratic(0)
    with pytest.raises(ValueError, match="give candidates or budget"):
        maximize(score, coordinates, 1000)
    with pytest.raises(ConfigError, match="unknown sampler 'cmq'"):
        maximize(score, coordinates, 1000, sampler="cmq", budget=10)
    with pytest.raises(StudyError, match="the budget is too small"):
        maximize(score, coordinates, 1000, budget=10)
    with pytest.raises(StudyError, match=r"(?s)all 1 candidates of generation 0 failed.*not finite"):
        maximize(lambda genome, ids: np.full(len(ids), np.inf), coordinates, 1000, candidates=20)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in {"gradient", "optunahub", "gp"}])
def test_a_fitness_of_ones_own_is_searched_by_any_sampler(name: str) -> None:
    score, truth, coordinates = quadratic(1)
    found = maximize(score, coordinates, 200, sampler=name, candidates=40)
    assert truth(found.best) >= truth(initial(coordinates)) - 0.1
    assert len(found.lines) <= 42


# --- many documents ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fidelity", "first", "last"),
    [({"select": 0.01, "final": False}, 20, 120), ({"batch": "all"}, 3, 7)],
    ids=["mini-batches", "all"],
)
def test_memory_stays_flat_with_a_hundred_thousand_documents_an_entry(
    fidelity: dict[str, Any], first: int, last: int
) -> None:
    entries = [Entry(name, 100_000, 1 / 3) for name in ("one", "two", "three")]
    tastes = np.random.default_rng(0).standard_normal(100_000)

    class Large(Host):
        def answer(self, task: Assignment) -> Evaluation:
            chosen: Mapping[str, Any] = task.documents or {entry.name: slice(None) for entry in entries}
            scores = {name: float(task.genome["a"]) + tastes[ids] for name, ids in chosen.items()}
            return Evaluation(scores, float(np.mean([one.mean() for one in scores.values()])))

    host = Large(entries=[Entry(entry.name, 1, entry.weight) for entry in entries])
    host.entries = entries
    peaks: dict[int, int] = {}

    def begin(generation: int, size: int) -> None:
        if generation in (first, last):
            peaks[generation] = tracemalloc.get_traced_memory()[0]
        if generation == last:
            host.candidates = 0

    host.begin = begin  # type: ignore[method-assign]
    module = plugins.load("samplers", "cma")
    sampler = module.make(Problem(COORDINATES, 0, STARTS), module.Options())
    tracemalloc.start()
    try:
        Search(module, sampler, objective_of(entries), 0, Fidelity.model_validate(fidelity), host).run()
    finally:
        tracemalloc.stop()
    assert (peaks[last] - peaks[first]) / len(host.lines) < 20_000, "of a line is kept what the log has"


def test_nothing_is_added_to_a_generation_that_others_came_after(open_search: Open) -> None:
    whole = Host(candidates=60)
    open_search("cma", whole, MINI).run()
    first = [line for line in whole.lines if line.generation == 1 and line.role == "search"]
    left = [line for line in whole.lines if line is not first[-1]]
    gap = Host(left, candidates=80)
    with pytest.raises(StudyError, match="generation 1 of the log is not what this search makes of it"):
        open_search("cma", gap, MINI).run()
    assert gap.lines == left
