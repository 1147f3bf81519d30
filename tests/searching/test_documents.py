"""Which documents are spent on which candidate: blocks, levels, survivors, pace."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evomerge.searching import documents as documents_module
from evomerge.searching import reliability
from evomerge.searching.documents import Chosen, Documents, Fidelity
from evomerge.searching.reliability import Pace
from tests.helpers.objectives import Entry, objective_of

ENTRIES = [Entry("maths", 100, 0.5), Entry("code", 37, 0.3), Entry("tiny", 3, 0.2)]
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9])

entries = st.lists(st.integers(1, 60), min_size=1, max_size=4).map(
    lambda counts: [Entry(f"e{at}", count, 1 / len(counts)) for at, count in enumerate(counts)]
)


def drawn(documents: Documents, blocks: int) -> list[Chosen]:
    return [documents.draw(number) for number in range(blocks)]


# --- documents ---


@given(entries, st.integers(2, 64), SHARES, st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_each_document_is_drawn_once_an_epoch_and_those_kept_apart_never(
    entries: list[Entry], batch: int, share: float, seed: int
) -> None:
    documents = Documents(objective_of(entries), seed, batch, share)
    apart = documents.select() if documents.selecting else {}
    blocks = drawn(documents, 200)
    for entry in entries:
        kept = set(apart.get(entry.name, ()))
        pool = set(range(entry.documents)) - kept
        quota = len(blocks[0][entry.name])
        times = Counter(id_ for block in blocks for id_ in block[entry.name])
        assert set(times) <= pool
        if 200 * quota >= len(pool):
            assert set(times) == pool, "every document has its turn"
        if len(pool) % quota == 0:
            assert max(times.values()) - min(times.get(id_, 0) for id_ in pool) <= 1
        # Within an epoch the blocks share nothing.
        whole = len(pool) // quota
        assert all(count == 1 for count in Counter(i for b in blocks[:whole] for i in b[entry.name]).values())


@given(entries, st.integers(2, 64), SHARES)
@settings(deadline=None, max_examples=60)
def test_a_block_has_a_document_of_each_entry_and_no_more_than_its_quota(
    entries: list[Entry], batch: int, share: float
) -> None:
    documents = Documents(objective_of(entries), 0, batch, share)
    for block in drawn(documents, 30):
        assert list(block) == [entry.name for entry in entries]
        for entry in entries:
            most = max(round(max(batch // reliability.BLOCKS, 1) * objective_of(entries).shares[entry.name]), 1)
            assert 1 <= len(block[entry.name]) <= min(most, entry.documents)
            assert block[entry.name] == sorted(set(block[entry.name]))
        assert sum(map(len, block.values())) <= documents.block


@given(entries, SHARES, st.lists(st.floats(0, 1), min_size=2, max_size=5))
@settings(deadline=None, max_examples=60)
def test_growing_shares_of_the_documents_kept_apart_hold_the_smaller_ones(
    entries: list[Entry], share: float, parts: list[float]
) -> None:
    documents = Documents(objective_of(entries), 0, 8, share)
    assert documents.searching + documents.selecting == sum(entry.documents for entry in entries)
    assert documents.selecting <= share * objective_of(entries).documents + len(entries)
    for small, large in pairwise([*sorted(parts), 1.0]):
        less, more = documents.select(small), documents.select(large)
        assert list(less) == list(more)
        assert all(set(less[name]) <= set(more[name]) for name in less)
        assert all(ids for ids in less.values())
        assert list(more) == [entry.name for entry in entries if share and entry.documents > 1]
    if documents.selecting:
        assert sum(map(len, documents.select().values())) == documents.selecting


def test_blocks_are_a_pure_function_of_seed_and_number() -> None:
    first, second = Documents(objective_of(ENTRIES), 3, 24, 0.25), Documents(objective_of(ENTRIES), 3, 24, 0.25)
    forward = drawn(first, 60)
    assert [second.draw(number) for number in reversed(range(60))] == forward[::-1]
    assert drawn(Documents(objective_of(ENTRIES), 4, 24, 0.25), 60) != forward


def test_an_epoch_has_an_order_of_its_own() -> None:
    documents = Documents(objective_of([Entry("maths", 20, 1.0)]), 0, 8, 0.0)
    first, second = drawn(documents, 10), [documents.draw(number) for number in range(10, 20)]
    assert sorted(id_ for block in first for id_ in block["maths"]) == list(range(20))
    assert sorted(id_ for block in second for id_ in block["maths"]) == list(range(20))
    assert first != second


def test_blocks_follow_the_weights_of_the_entries() -> None:
    documents = Documents(objective_of([Entry("much", 400, 0.75), Entry("little", 400, 0.25)]), 0, 64, 0.25)
    assert {name: len(ids) for name, ids in documents.draw(0).items()} == {"much": 12, "little": 4}
    assert documents.block == 16
    assert documents.selecting == 200


def test_an_entry_of_one_document_serves_the_search() -> None:
    documents = Documents(objective_of([Entry("one", 1, 0.5), Entry("many", 40, 0.5)]), 0, 8, 0.5)
    assert all(block["one"] == [0] for block in drawn(documents, 5))
    assert list(documents.select()) == ["many"]


def test_without_a_share_no_documents_are_kept_apart() -> None:
    documents = Documents(objective_of(ENTRIES), 0, 8, 0.0)
    assert documents.selecting == 0
    assert list(documents.select()) == []


def test_drawing_from_a_hundred_thousand_documents_does_not_shuffle_them_for_each_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    documents = Documents(objective_of([Entry(f"e{at}", 100_000, 1 / 3) for at in range(3)]), 0, 24, 0.25)
    opened: list[tuple[int, ...]] = []
    stream = documents_module._stream
    monkeypatch.setattr(documents_module, "_stream", lambda *key: opened.append(key) or stream(*key))  # type: ignore[func-returns-value]
    drawn(documents, 1000)
    assert len(opened) == 3


@given(entries, st.integers(2, 32), st.integers(1, 6), st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_parts_are_the_values_on_each_block_alone(entries: list[Entry], batch: int, count: int, first: int) -> None:
    documents = Documents(objective_of(entries), 1, batch, 0.25)
    truth = {entry.name: np.random.default_rng(0).random(entry.documents) for entry in entries}
    blocks = [documents.draw(number) for number in range(first, first + count)]
    together = documents_module.union(blocks)
    objective = objective_of(entries)
    found = documents_module.block_values(
        objective, blocks, {name: truth[name][ids] for name, ids in together.items()}
    )
    assert found == tuple(
        pytest.approx(objective.value({name: truth[name][ids] for name, ids in block.items()})) for block in blocks
    )


# --- ranking ---


@pytest.mark.parametrize(("between", "noise"), [(1.0, 0.25), (0.25, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_variances_are_recovered_within_their_sampling_error(between: float, noise: float) -> None:
    random = np.random.default_rng(0)
    candidates, blocks, repeats = 12, 4, 400
    found = []
    for _ in range(repeats):
        values = (
            np.sqrt(between) * random.standard_normal((candidates, 1))
            + 3.0 * random.standard_normal((1, blocks))  # the blocks' difficulty, which is no candidate's
            + np.sqrt(noise) * random.standard_normal((candidates, blocks))
        )
        found.append(reliability.variance(values))
    spread = (between + noise / blocks) * np.sqrt(2 / (candidates - 1) / repeats)
    if between:  # at 0 it is cut off from below
        assert np.mean([one.between for one in found]) == pytest.approx(between, abs=4 * spread)
    assert np.mean([one.noise for one in found]) == pytest.approx(noise, rel=0.05, abs=1e-12)
    wanted = between / (between + noise / blocks)
    assert np.median([one.reliability(blocks) for one in found]) == pytest.approx(wanted, abs=0.1)


def test_equal_values_are_not_reliable() -> None:
    assert reliability.variance(np.full((4, 3), 0.5)).reliability(3) == 0.0


# --- pace ---


def generation(between: float, noise: float, seed: int, blocks: int = 4) -> np.ndarray:
    random = np.random.default_rng(seed)
    return between * random.standard_normal((12, 1)) + noise * random.standard_normal((12, blocks))


def test_blocks_are_added_on_noise_up_to_the_most() -> None:
    pace = Pace(True, 7)
    counts = []
    for seed in range(40):
        pace.see(generation(0.0, 1.0, seed, pace.blocks))
        counts.append(pace.blocks)
    assert counts == sorted(counts)
    assert counts[-1] == 7


def test_blocks_are_dropped_where_the_ranking_is_clear_down_to_two() -> None:
    pace = Pace(True, 16)
    counts = []
    for seed in range(40):
        pace.see(generation(1.0, 0.01, seed, pace.blocks))
        counts.append(pace.blocks)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 2


@pytest.mark.parametrize("noise", [0.01, 100.0])
def test_without_adapting_the_pace_stays(noise: float) -> None:
    pace = Pace(False, 16)
    for seed in range(20):
        pace.see(generation(1.0, noise, seed))
    assert pace.blocks == reliability.BLOCKS


def test_few_candidates_or_one_block_tell_the_pace_nothing() -> None:
    pace = Pace(True, 16)
    for seed in range(20):
        pace.see(generation(1.0, 0.0, seed)[:3])
        pace.see(generation(1.0, 0.0, seed)[:, :1])
    assert pace.blocks == reliability.BLOCKS


@given(st.integers(1, 20), st.lists(st.booleans(), max_size=60))
def test_the_pace_stays_within_its_limits(most: int, clear: list[bool]) -> None:
    pace = Pace(True, most)
    for seed, one in enumerate(clear):
        pace.see(generation(1.0 if one else 0.0, 0.01 if one else 1.0, seed, max(pace.blocks, 1)))
        assert min(2, most) <= pace.blocks <= most


# --- the choice in the experiment ---


@pytest.mark.parametrize(
    ("batch", "documents", "fresh", "found"),
    [
        ("auto", 10_000, True, 24),
        ("auto", 144, True, 24),
        ("auto", 143, True, None),
        ("auto", 10_000, False, None),
        ("all", 10_000, True, None),
        (40, 100, True, 40),
        (40, 100, False, 40),
        (100, 100, True, None),
        (101, 100, True, None),
    ],
)
def test_the_documents_of_a_candidate_are(batch: str | int, documents: int, fresh: bool, found: int | None) -> None:
    assert Fidelity.model_validate({"batch": batch}).mini_batch(documents, fresh=fresh) == found


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": "some"}, {"select": 0.95}, {"select": -0.1}])
def test_a_fidelity_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Fidelity.model_validate(options)


def test_racing_is_no_rule_any_more() -> None:
    assert Fidelity.model_validate({"race": False, "adapt": False}) == Fidelity(adapt=False)
    with pytest.raises(ValidationError, match=r"race is no rule any more, .*; remove it"):
        Fidelity.model_validate({"race": True})
