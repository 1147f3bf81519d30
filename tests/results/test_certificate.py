from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evomerge.results import certificate, tables
from evomerge.scoring import Report, TaskScore
from evomerge.scoring.fitness import Entry
from evomerge.scoring.objective import measure
from evomerge.searching.spaces import decoding, genes
from evomerge.studies import experiment
from evomerge.studies.candidates.workbench import Score
from evomerge.studies.plan import make_plan
from evomerge.studies.workers.jobs import Job, Outcome


def _differences(gain: float, documents: int, seed: int) -> np.ndarray:
    """Paired accuracies that differ by `gain` on average: +1, 0 or -1 a document."""
    chances = [0.15 - gain / 2, 0.7, 0.15 + gain / 2]
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], size=documents, p=chances)


def test_no_difference_is_noise() -> None:
    found = certificate.paired([np.zeros(100), np.zeros(50)])
    assert (found.gain, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert found.verdict == "within noise"


def test_a_large_gain_is_real_and_its_mirror_image_a_loss() -> None:
    differences = [_differences(0.15, 600, seed) for seed in (0, 1)]
    up, down = certificate.paired(differences), certificate.paired([-d for d in differences])
    assert (up.verdict, down.verdict) == ("better", "worse")
    assert 0 < up.low < up.gain < up.high
    assert up.gain == pytest.approx(np.mean([d.mean() for d in differences]))


def test_the_test_is_reproducible() -> None:
    differences = [_differences(0.02, 200, 3)]
    assert certificate.paired(differences) == certificate.paired(differences)


def test_noise_is_called_a_gain_as_often_as_the_level_says() -> None:
    rejected = [
        certificate.paired([_differences(0.0, 150, seed)], resamples=500).p < certificate.LEVEL
        for seed in range(400)
    ]
    assert 0.02 < np.mean(rejected) < 0.09


def test_the_interval_covers_the_true_gain_about_as_often_as_it_says() -> None:
    true = 0.06
    intervals = [certificate.paired([_differences(true, 200, seed)], resamples=500) for seed in range(300)]
    covered = np.mean([found.low <= true <= found.high for found in intervals])
    assert 0.90 < covered < 0.99


def test_a_group_is_one_entry_of_all_its_documents() -> None:
    def score(values: dict[str, list[float]]) -> Score:
        tasks = {
            name: TaskScore(np.arange(len(found)), {"acc": np.array(found)}, {"acc": float(np.mean(found))})
            for name, found in values.items()
        }
        report = Report(tasks, tokens=0, padding=0, truncated={}, cut_prompts={})
        groups = {"pair": ("x", "y"), "z": ("z",)}
        return Score(measure(entries, report, groups), report, groups, {})

    entries = [Entry(task="pair"), Entry(task="z")]
    ours = score({"x": [1, 1, 1, 0], "y": [1, 0], "z": [1, 1]})
    theirs = score({"x": [0, 1, 0, 0], "y": [1, 1], "z": [0, 1]})
    found = certificate.paired(certificate.differences(entries, ours, theirs))
    assert found.gain == pytest.approx(ours.measured.mean - theirs.measured.mean)


@pytest.mark.parametrize(
    ("counts", "differs"),
    [
        ((0, 0, 200), False),
        ((12, 40, 200), True),
        ((40, 12, 200), True),
        ((12, 14, 200), False),
        ((0, 5, 200), False),  # p = 0.061
        ((0, 6, 200), True),  # p = 0.030
        ((195, 200, 200), False),
        ((194, 200, 200), True),
        ((1000, 1090, 10_000), False),  # beyond chance, but below 1 % of the answers
        ((0, 1, 1), False),
        ((0, 4, 4), True),
    ],
)
def test_truncation_differs_where_it_is_noticeable_and_beyond_chance(
    counts: tuple[int, int, int], differs: bool
) -> None:
    assert certificate.truncation_differs(*counts) is differs


def test_equal_rates_of_truncation_seldom_differ() -> None:
    random = np.random.default_rng(0)
    pairs = random.binomial(300, 0.2, size=(2000, 2))
    assert np.mean([certificate.truncation_differs(int(a), int(b), 300) for a, b in pairs]) < certificate.LEVEL


def _truncated(counts: dict[str, int], documents: int = 200) -> Report:
    tasks = {name: TaskScore(np.arange(documents), {}, {}) for name in counts}
    return Report(tasks, tokens=0, padding=0, truncated=counts, cut_prompts={})


def test_a_warning_names_the_task_and_the_models_that_differ() -> None:
    others = {"base": {"sums": 40, "words": 3}, "expert ant": {"sums": 13, "words": 3}}
    (warning,) = certificate.truncation_warnings("the winner", _truncated({"sums": 12, "words": 2}), others)
    assert warning.startswith("sums: truncation differs: of 200 answers the winner had 12 cut off, base 40; ")
    assert warning.endswith("raise the task's max_gen_toks")
    assert certificate.truncation_warnings("the winner", _truncated({"words": 2}), others) == ()


class _Scored:
    """A pool that knows all scores beforehand."""

    size = 1
    note: str | None = None

    def __init__(self, truncated: dict[str, int], names: list[str]) -> None:
        self.documents: dict[str, int] = {}
        self._truncated, self._names = truncated, names

    def run(self, jobs: Iterable[Job | Outcome | None]) -> Iterator[Outcome]:
        for job in jobs:
            assert isinstance(job, Job)
            count = self._truncated.get(self._names[job.key], 30)
            result = TaskScore(np.arange(100), {"acc": np.arange(100) % 2.0}, {"acc": 0.5})
            report = Report({"first_test": result}, 0, 0, {"first_test": count}, {"first_test": 0})
            groups: dict[str, tuple[str, ...]] = {"first_test": ("first_test",)}
            yield Outcome(job.key, Score(measure([Entry(task="first_test")], report, groups), report, groups, {}))

    def close(self) -> None:
        pass


def test_a_certificate_warns_where_truncation_differs(write_experiment: Callable[..., Path]) -> None:
    plan = make_plan(experiment.load_experiment(write_experiment()))
    winner = decoding.decode(plan.experiment.space, plan.frame, genes.initial(plan.coordinates))
    names = list(certificate.contestants(plan, winner))
    calm = certificate.certify(plan, winner, _Scored({}, names))
    assert calm.warnings == ()
    found = certificate.certify(plan, winner, _Scored({"winner": 3, "expert ant": 5}, names))
    (warning,) = found.warnings
    assert "of 100 answers the winner had 3 cut off, base 30, expert bee 30, uniform average 30;" in warning
    assert json.loads(json.dumps(certificate.as_json(found)))["warnings"] == [warning]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.certificate_table(found))
    assert "warning: first_test: truncation differs" in console.export_text()
