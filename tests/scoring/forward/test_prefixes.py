"""Which tokens are forwarded when: every place sees its row's prefix, and nearly none is forwarded twice."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.scoring.forward.budgets import LONG
from evomerge.scoring.forward.costs import Cost
from evomerge.scoring.forward.prefixes import plan_passes

CPU = (1024, LONG * 1024, Cost(3e-3, 48))
DEVICE = (32768, LONG * 32768, Cost(1e-3, 512))


def seen_by_each_place(batches):
    """(batch, line, column) -> the tokens that a model would see from there, in the order of their positions.

    The kept path is cut to what a batch stands on, extended by trunks, and seen whole by each line.
    """
    seen = {}
    path: list[int] = []
    for number, batch in enumerate(batches):
        assert batch.past <= len(path)
        path = path[: batch.past]
        for line, length in enumerate(batch.lengths):
            for column in range(length):
                visible = [j for j in range(column + 1) if column < batch.ends[line, j]]
                depths = batch.depths[line, visible].tolist()
                assert depths == list(range(batch.past, batch.past + len(visible))), "depths are positions"
                seen[number, line, column] = path + batch.ids[line, visible].tolist()
        if batch.keep:
            assert len(batch.lengths) == 1
            path = path + batch.ids[0].tolist()
    return seen


def assert_each_place_sees_its_prefix(batches, places, rows, tails):
    seen = seen_by_each_place(batches)
    for row, tail, found in zip(rows, tails, places, strict=True):
        assert found.shape == (tail, 3)
        for at, place in enumerate(found.tolist()):
            assert seen[tuple(place)] == row[: len(row) - tail + at + 1].tolist()


def assert_sound(made, rows, tails, budget, share):
    assert_each_place_sees_its_prefix(made.batches, made.places, rows, tails)
    for batch in made.batches:
        assert batch.ids.shape == batch.depths.shape == batch.ends.shape
        assert batch.ids.size <= budget or len(batch.lengths) == 1
        assert batch.ids.size <= LONG * budget or not share
        for line, length in enumerate(batch.lengths):
            padding = batch.ends[line, length:].tolist()
            assert padding == list(range(length + 1, batch.ids.shape[1] + 1)), "padding sees itself alone"
    distinct = {row[:length].tobytes() for row in rows for length in range(1, len(row) + 1)}
    assert made.distinct == len(distinct)
    assert made.tokens == sum(sum(batch.lengths) for batch in made.batches)
    assert made.tokens + made.padding == sum(batch.ids.size for batch in made.batches)
    assert made.tokens >= made.distinct


@st.composite
def rows_that_begin_alike(draw):
    """Rows and how many of their last tokens are wanted. Each row is another's beginning with tokens of its own."""
    token = st.integers(0, draw(st.sampled_from([1, 2, 9])))
    rows = [tuple(draw(st.lists(token, min_size=1, max_size=40)))]
    for _ in range(draw(st.integers(0, 24))):
        other = draw(st.sampled_from(rows))
        kept = draw(st.one_of(st.just(len(other)), st.just(0), st.integers(0, len(other))))
        rows.append(other[:kept] + tuple(draw(st.lists(token, max_size=draw(st.sampled_from([1, 4, 20]))))))
    arrays = [np.array(row, dtype=np.int64) for row in dict.fromkeys(rows) if row]
    return arrays, [draw(st.one_of(st.just(1), st.integers(1, len(row)), st.just(len(row)))) for row in arrays]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    rows_that_begin_alike(),
    st.sampled_from([1, 4, 16, 64, 1024]),
    st.sampled_from([0.0, 0.003, 0.3]),
    st.sampled_from([0.0, 2.0, 48.0]),
    st.booleans(),
)
def test_each_wanted_place_sees_exactly_its_rows_prefix(asked, budget, key, call, share):
    rows, tails = asked
    made = plan_passes(rows, tails, budget, LONG * budget, Cost(key, call), share=share)
    assert_sound(made, rows, tails, budget, share)


@settings(max_examples=60, deadline=None)
@given(rows_that_begin_alike(), st.sampled_from([4, 16, 64]), st.sampled_from([0.0, 2.0]))
def test_a_batch_names_all_that_it_stands_on(asked, budget, call):
    """Forwarded without the others, the batches of one row and those under them give that row's places."""
    rows, tails = asked
    made = plan_passes(rows, tails, budget, LONG * budget, Cost(0.003, call))
    for row, tail, places in zip(rows, tails, made.places, strict=True):
        wanted = set(places[:, 0].tolist())
        wanted |= {below for number in wanted for below in made.batches[number].under}
        numbers = {number: at for at, number in enumerate(sorted(wanted))}
        renumbered = places.copy()
        renumbered[:, 0] = [numbers[number] for number in places[:, 0].tolist()]
        chosen = [made.batches[number] for number in sorted(wanted)]
        assert_each_place_sees_its_prefix(chosen, [renumbered], [row], [tail])


@settings(max_examples=50, deadline=None)
@given(rows_that_begin_alike(), st.sampled_from([4, 64]))
def test_a_plan_is_the_same_each_time_and_does_not_depend_on_the_order_of_the_rows(asked, budget):
    rows, tails = asked
    one, other = (
        plan_passes(rows, tails, budget, LONG * budget, Cost(0.003, 2)),
        plan_passes(rows[::-1], tails[::-1], budget, LONG * budget, Cost(0.003, 2)),
    )
    for mine, theirs in zip(one.batches, other.batches, strict=True):
        assert (mine.past, mine.keep, mine.lengths, mine.under) == (
            theirs.past,
            theirs.keep,
            theirs.lengths,
            theirs.under,
        )
        assert np.array_equal(mine.ids, theirs.ids)
    assert all(np.array_equal(*pair) for pair in zip(one.places, other.places[::-1], strict=True))


def test_subtrees_left_open_would_be_noticed():
    """The check above is one: without the ends, a choice sees the choices before it."""
    rows, tails = [np.array([1, 2, 3, choice]) for choice in (4, 5, 6)], [1, 1, 1]
    made = plan_passes(rows, tails, 64, LONG * 64, Cost(0.003, 48))
    assert_each_place_sees_its_prefix(made.batches, made.places, rows, tails)
    (batch,) = made.batches
    assert batch.branches
    opened = replace(batch, ends=np.full_like(batch.ends, batch.ids.shape[1]))
    with pytest.raises(AssertionError):
        assert_each_place_sees_its_prefix([opened], made.places, rows, tails)


def test_rows_that_do_not_share_are_each_forwarded_whole():
    rows = [np.array([1, 2, 3]), np.array([1, 2, 3, 4]), np.array([1, 2])]
    made = plan_passes(rows, [1, 1, 1], 8, LONG * 8, Cost(0.0, 2), share=False)
    assert sorted(length for batch in made.batches for length in batch.lengths) == [2, 3, 4]
    assert not any(batch.keep or batch.past or batch.branches for batch in made.batches)
    assert (made.tokens, made.distinct) == (9, 4)


def tokens(rng, low, high=None):
    """Tokens as frequent as words are."""
    count = low if high is None else rng.integers(low, high + 1)
    return np.minimum(rng.zipf(1.3, count), 5000)


def documents(rng, count, context, choices, answer, beginning=()):
    """Rows of multiple-choice documents: a beginning that all share, a context, and an answer of each choice."""
    rows = []
    for _ in range(count):
        document = np.concatenate([np.array(beginning, dtype=np.int64), tokens(rng, *context)])
        rows += [np.concatenate([document, tokens(rng, *answer)]) for _ in range(choices)]
    return list({row.tobytes(): row for row in rows}.values())


def few_shot_prefix(rng):
    return documents(rng, 100, (30, 70), 4, (3, 10), tokens(rng, 400))


def no_examples(rng):
    return documents(rng, 100, (30, 70), 4, (3, 10))


def ten_choices(rng):
    return documents(rng, 60, (20, 60), 10, (2, 8), tokens(rng, 500))


def letters(rng):
    return documents(rng, 200, (40, 100), 1, (0, 0))


def long_contexts(rng):
    return documents(rng, 20, (500, 1200), 4, (3, 10))


def random_examples(rng):
    pool = [tokens(rng, 80) for _ in range(20)]
    shots = [np.concatenate([pool[at] for at in rng.permutation(20)[:5]]) for _ in range(100)]
    return [row for beginning in shots for row in documents(rng, 1, (30, 70), 4, (3, 10), beginning)]


def several_tasks(rng):
    return few_shot_prefix(rng) + documents(rng, 100, (15, 45), 2, (2, 5), tokens(rng, 200)) + letters(rng)


SHAPES = [few_shot_prefix, no_examples, ten_choices, letters, long_contexts, random_examples, several_tasks]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_hardly_a_token_of_a_typical_fitness_is_forwarded_twice(shape):
    rows = shape(np.random.default_rng(0))
    made = plan_passes(rows, [1] * len(rows), *CPU)
    assert made.tokens + made.padding < 1.10 * made.distinct


@pytest.mark.parametrize("shape", [few_shot_prefix, no_examples, letters], ids=lambda shape: shape.__name__)
def test_nor_on_a_device_that_takes_large_batches(shape):
    rng = np.random.default_rng(0)
    rows = [row for part in (shape(rng) for _ in range(5)) for row in part]
    made = plan_passes(rows, [1] * len(rows), *DEVICE)
    assert made.tokens < 1.05 * made.distinct
    assert made.tokens + made.padding < 1.15 * made.distinct


@pytest.mark.parametrize("shape", [few_shot_prefix, ten_choices], ids=lambda shape: shape.__name__)
@pytest.mark.parametrize(("budget", "longest", "cost"), [CPU, DEVICE], ids=["cpu", "device"])
def test_a_long_beginning_that_all_rows_share_is_forwarded_once(shape, budget, longest, cost):
    rows = shape(np.random.default_rng(0))
    shared = next(at for at, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1)
    assert shared >= 400
    made = plan_passes(rows, [1] * len(rows), budget, longest, cost)
    counts = Counter(
        depth
        for batch in made.batches
        for line, length in enumerate(batch.lengths)
        for depth in batch.depths[line, :length].tolist()
    )
    assert {counts[depth] for depth in range(shared)} == {1}


def test_a_row_far_longer_than_the_budget_is_forwarded_in_parts():
    rng = np.random.default_rng(0)
    rows = [tokens(rng, 1000), tokens(rng, 900)]
    made = plan_passes(rows, [200, 900], 64, LONG * 64, Cost(3e-3, 48))
    assert len(made.batches) > 2
    assert_sound(made, rows, [200, 900], 64, True)
    assert made.tokens == made.distinct
    assert made.padding == 0
