"""A mean over drawn documents, by exact expectation over all draws, and against drawing regardless of tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.searching import documents as documents_module
from evomerge.searching.documents import Documents, union
from evomerge.searching.objective import Objective
from evomerge.searching.strata import apportioned, parts, standard_error, starts, strata, visits

weights = st.lists(st.floats(0.01, 10), min_size=1, max_size=12)


def shares_of(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


@given(weights, st.integers(1, 30))
def test_each_stratum_has_a_document_and_each_task_a_stratum(weights: list[float], documents: int) -> None:
    shares = shares_of(weights)
    found = strata(shares, documents)
    assert sorted(itertools.chain(*found)) == list(range(len(shares)))
    assert all(found)
    large = {at for at, share in enumerate(shares) if documents * share >= 1}
    assert sum(len(one) > 1 and bool(large & set(one)) for one in found) <= 1, "small tasks are joined among them"
    whole = [sum(shares[at] for at in one) for one in found]
    counts = apportioned(whole, documents)
    assert documents <= sum(counts) <= documents + len(found) // 2
    assert all(count >= 1 for count in counts)
    assert all(abs(count - documents * share) < 1 + 1e-6 for count, share in zip(counts, whole, strict=True))


def pieces(shares: Sequence[float], documents: int, blocks: int) -> Iterator[tuple[float, float]]:
    """All different outcomes of so many blocks: a first start that leads to it, and its probability."""
    edges = (documents * np.cumsum(shares)[:, None] - starts(0.0, blocks)[None, :]) % 1.0
    ends = np.unique([0.0, 1.0, *edges.ravel(), *(-starts(0.0, blocks) % 1.0)])
    for low, high in itertools.pairwise(ends):
        yield (low + high) / 2, high - low


@given(weights, st.integers(1, 6), st.integers(1, 5))
def test_a_task_gives_documents_by_its_share_on_the_average_in_every_block(
    weights: list[float], documents: int, blocks: int
) -> None:
    shares = shares_of(weights)
    expected = np.zeros((blocks, len(shares)))
    for first, probability in pieces(shares, documents, blocks):
        counts = visits(shares, documents, starts(first, blocks))
        assert (counts.sum(axis=1) == documents).all()
        assert (np.abs(counts - documents * np.array(shares)) < 1 + 1e-9).all()
        expected += probability * counts
    np.testing.assert_allclose(expected, np.tile(documents * np.array(shares), (blocks, 1)), atol=1e-9)


class Draws:
    """A generator whose draws are given."""

    def __init__(self, order: Sequence[int], start: float) -> None:
        self._order, self._start = order, start

    def permutation(self, size: int) -> np.ndarray:
        assert size == len(self._order)
        return np.array(self._order)

    def random(self) -> float:
        return self._start


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(
    ("shares", "quota"),
    [
        ((1 / 3, 1 / 3, 1 / 3), 1),  # one document a block: it lacks two tasks
        ((0.2, 0.3, 0.5), 2),  # the large task has one of its own, the small ones one together
        ((3 / 6, 2 / 6, 1 / 6), 4),  # weighted by size
        ((0.6, 0.3, 0.1), 3),  # the smallest task is too small to be left alone
        ((0.7, 0.1, 0.2), 3),
    ],
)
def test_the_value_on_some_documents_is_unbiased(
    shares: tuple[float, ...], quota: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expectation over every order of every task's documents and every start, of which no draw is left out."""
    sizes = {"three": 3, "two": 2, "one": 1}
    objective = Objective({**sizes, "alone": 1}, {"group": 3.0, "alone": 1.0}, {
        "group": dict(zip(sizes, shares, strict=True)), "alone": {"alone": 1.0}
    })  # fmt: skip
    truth = {name: np.random.default_rng(0).random(size) for name, size in objective.sizes.items()}
    joined = [one for one in strata(shares, quota) if len(one) > 1]
    pools = (itertools.permutations(range(3)), itertools.permutations(range(2)))
    orders = list(itertools.product(*map(list, pools)))
    within = [shares[at] / sum(shares[one] for one in joined[0]) for at in joined[0]] if joined else [1.0]
    count = round(quota * sum(shares[at] for at in joined[0])) if joined else 1
    expected = lacking = 0.0
    for first, probability in pieces(within, count, blocks):
        for even, odd in itertools.product(orders, orders):  # of epochs of even and of odd number

            def stream(seed: int, *key: int, even: Any = even, odd: Any = odd, first: float = first) -> Draws:
                same = (0, 1, 2), (0, 1)
                orders_of = same if len(key) < 3 else even if key[2] % 2 == 0 else odd
                return Draws([*orders_of, (0,), (0,)][key[1]], first)

            monkeypatch.setattr(documents_module, "_stream", stream)
            documents = Documents(objective, 0, round(quota / 0.75) * 4, 0.0)
            assert documents.block <= quota + 1
            chosen = union([documents.draw(number) for number in range(blocks)])
            assert sum(chosen.shares.values()) == pytest.approx(1.0)
            value = objective.value({name: truth[name][ids] for name, ids in chosen.items()}, chosen.shares)
            expected += probability * value / len(orders) ** 2
            lacking += probability * (len(chosen) < len(objective.sizes)) / len(orders) ** 2
    assert expected == pytest.approx(objective.value(truth), abs=1e-12)
    if quota < 3 and blocks == 1:
        assert lacking > 0.1, "or nothing was tried"


def test_the_documents_kept_apart_are_unbiased_as_well() -> None:
    """Of random orders, to within the error of so many; a task of two documents gives one of them."""
    groups = {"group": {"x": 0.5, "y": 0.5}}
    objective = Objective({"x": 2, "y": 12}, None, groups)
    truth = {"x": np.array([0.0, 1.0]), "y": np.arange(12) / 3}
    found = []
    for seed in range(600):
        apart = Documents(objective, seed, 8, 0.25).select()
        assert {name: len(ids) for name, ids in apart.items()} == {"x": 1, "y": 3}
        found.append(objective.value({name: truth[name][ids] for name, ids in apart.items()}, apart.shares))
    error = float(np.std(found)) / math.sqrt(len(found))
    assert np.mean(found) == pytest.approx(objective.value(truth), abs=4 * error)


def test_drawing_by_task_varies_less_than_drawing_from_all_documents_with_weights() -> None:
    """A small and a large task of equal shares: drawn regardless of tasks, the small one's documents weigh more."""
    sizes, share = {"small": 16, "large": 144}, 0.5
    objective = Objective(sizes, None, {"group": dict.fromkeys(sizes, share)})
    random = np.random.default_rng(0)
    chances = {"small": 0.8, "large": 0.4}
    truth = {name: (random.random(size) < chances[name]) * 1.0 for name, size in sizes.items()}
    by_task, weighted = [], []
    every = np.concatenate([160 * share / sizes[name] * own for name, own in truth.items()])
    for seed in range(600):
        block = Documents(objective, seed, 32, 0.0).draw(0)
        assert block.documents == 8
        by_task.append(objective.value({name: truth[name][ids] for name, ids in block.items()}, block.shares))
        weighted.append(every[np.random.default_rng(seed).permutation(160)[:8]].mean())
    whole = objective.value(truth)
    assert np.mean(by_task) == pytest.approx(whole, abs=0.03)
    assert np.mean(weighted) == pytest.approx(whole, abs=0.08)
    assert np.var(by_task) < 0.2 * np.var(weighted)


def test_a_run_of_blocks_comes_to_each_of_many_tasks_evenly() -> None:
    sizes = {f"t{at}": 40 for at in range(57)}
    documents = Documents(Objective(sizes, None, {"group": dict.fromkeys(sizes, 1 / 57)}), 0, 24, 0.0)
    assert documents.block == 6
    blocks = [documents.draw(number) for number in range(57 * 40 // 6)]
    times = {name: sum(len(block.get(name, ())) for block in blocks) for name in sizes}
    assert 36 <= min(times.values()) <= max(times.values()) <= 44
    for name in sizes:
        ids = [id_ for block in blocks for id_ in block.get(name, ())][:36]
        assert len(set(ids)) == len(ids), "no document comes again before all have come"


# --- errors ---


def test_what_documents_add_is_the_weighted_mean_and_strata_of_one_are_joined() -> None:
    scores = [np.array([1.0, 3.0]), np.array([5.0]), np.array([7.0]), np.array([1.0, 2.0, 3.0])]
    shares = [0.1, 0.2, 0.3, 0.4]
    found = parts(scores, shares)
    for own, wanted in zip(found, [[0.05, 0.15], [0.4 / 3, 0.8 / 3, 0.4], [1.0, 2.1]], strict=True):
        assert own.tolist() == pytest.approx(wanted)
    assert sum(own.sum() for own in found) == pytest.approx(0.2 + 1.0 + 2.1 + 0.8)
    lone = parts([np.array([1.0, 2.0, 3.0]), np.array([4.0]), np.array([0.0, 1.0])], [0.5, 0.25, 0.25])
    assert [own.size for own in lone] == [3, 3], "with the smallest of the others"
    assert [own.size for own in parts([np.array([4.0])], [1.0])] == [1]
    assert standard_error(parts([np.array([4.0])], [1.0])) == 0.0


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2, 30), (1, 1, 1, 1, 1, 1), (40, 5)])
def test_the_error_is_that_of_sampling_even_with_few_documents_a_task(sizes: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    shares = shares_of([1.0] * len(sizes))
    means, variances = [], []
    for _ in range(3000):
        added = parts([random.normal(0.0, 1.0, size) for size in sizes], shares)
        means.append(sum(own.sum() for own in added))
        variances.append(standard_error(added) ** 2)
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.1)
