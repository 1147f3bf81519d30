"""What is M2N2's own: niches, attraction, the split in order of depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.searching.samplers import Problem, Result, _units, _variation, m2n2
from evomerge.searching.spaces.genes import Coordinate, Genome

LAYERS = [Coordinate(f"weight.l{layer}.maths", 0.0, 1.0, 0.5, log=False, depth=layer) for layer in range(6)]
LONE = [Coordinate("x", 0.0, 1.0, 0.5, log=False)]


def make(starts: Sequence[Genome], coordinates: Sequence[Coordinate] = LONE, **options: Any) -> m2n2.M2N2Sampler:
    return m2n2.make(Problem(coordinates, 0, starts), m2n2.Options.model_validate(options))


def at(value: float) -> Genome:
    """A genome of the same value everywhere."""
    return {"x": value}


def result(*documents: float) -> Result:
    scores = np.array(documents)
    return Result(float(scores.mean()), (float(scores.mean()),), scores)


def kept(sampler: m2n2.M2N2Sampler) -> list[float]:
    return sorted(sampler._genomes[:, 0].tolist())


# Three of the first skill, one of them poorer; and the only one of the second skill, of the least mean.
NICHES = {
    0.1: (1, 1, 1, 1, 0, 0),
    0.2: (1, 1, 1, 1, 0, 0),
    0.3: (1, 1, 1, 0, 0, 0),
    0.9: (0, 0, 0, 0, 1, 1),
}


def niches(**options: Any) -> m2n2.M2N2Sampler:
    sampler = make([at(value) for value in NICHES], archive=3, **options)
    sampler.ask(0)
    sampler.tell(0, [result(*documents) for documents in NICHES.values()])
    return sampler


def test_a_specialist_without_rivals_outlives_better_ones_that_share_their_documents() -> None:
    assert kept(niches()) == [0.1, 0.2, 0.9]


def test_without_competition_the_specialist_of_the_least_mean_goes() -> None:
    assert kept(niches(competition=0.0)) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("capacity", ["one", "best"])
def test_the_capacity_does_not_matter_to_answers_that_are_right_or_wrong(capacity: str) -> None:
    sampler = niches(capacity=capacity)
    assert sampler.ask(2).genomes == niches().ask(2).genomes


def test_a_document_on_which_little_is_at_stake_counts_little() -> None:
    scores = np.array([[1.0, 0.0], [0.0, 1e-6]])
    even = m2n2._shares(scores, m2n2.Options(capacity="one", epsilon=1e-12)).sum(axis=1)
    weighed = m2n2._shares(scores, m2n2.Options(capacity="best")).sum(axis=1)
    assert even == pytest.approx([1.0, 1.0], abs=1e-5)
    assert weighed == pytest.approx([1.0, 0.0], abs=1e-5)


def test_attraction_picks_the_complement() -> None:
    """Each of two specialists mates with the other, and none with the third, which knows nothing."""
    starts: list[Genome] = [{c.name: value for c in LAYERS} for value in (0.5, 0.0, 1.0)]
    sampler = make(starts, LAYERS, archive=3, mutation=0.0, population=200)
    sampler.ask(0)
    sampler.tell(0, [result(0, 0, 0, 0), result(1, 1, 0, 0), result(0, 0, 1, 1)])
    for genome in sampler.ask(1).genomes:
        front, back = float(genome["weight.l0.maths"]), float(genome["weight.l5.maths"])
        assert front == pytest.approx(back) or front + back == pytest.approx(1.0)


def test_a_mate_attracts_by_what_the_first_parent_lacks_and_few_others_know() -> None:
    scores = np.array([[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0]], dtype=float)
    attraction = m2n2._attraction(m2n2._shares(scores, m2n2.Options()), 0)
    assert attraction == pytest.approx([0.0, 1 / 2, 1 / 2, 1.0])


def test_equals_do_not_attract_so_the_mate_is_any() -> None:
    sampler = make([at(0.2), at(0.8)], archive=2, mutation=0.0)
    sampler.ask(0)
    sampler.tell(0, [result(1, 1), result(1, 1)])
    values = [float(genome["x"]) for genome in sampler.ask(1).genomes]
    assert all(0.2 <= value <= 0.8 for value in values)
    assert len(set(values)) > 1


def test_the_split_point_is_in_order_of_depth() -> None:
    """However the coordinates are listed, a child has one value before the split and its complement behind it."""
    listed = [LAYERS[i] for i in (3, 0, 5, 1, 4, 2)]
    starts: list[Genome] = [{c.name: value for c in listed} for value in (0.0, 1.0)]
    sampler = make(starts, listed, archive=2, mutation=0.0, population=64)
    sampler.ask(0)
    sampler.tell(0, [result(1, 0), result(0, 1)])
    splits = set()
    for genome in sampler.ask(1).genomes:
        values = np.array([genome[c.name] for c in LAYERS])
        changes = np.flatnonzero(~np.isclose(np.diff(values), 0.0))
        assert len(changes) <= 1
        if len(changes):
            assert values[0] + values[-1] == pytest.approx(1.0)
        splits.update(changes.tolist())
    assert splits == {0, 1, 2, 3, 4}


def test_coordinates_without_a_layer_lie_behind_all_others() -> None:
    depths = {
        "density": None,
        "weight.g10.maths": 10,
        "weight.g2.maths": 2,
        "lambda.code": None,
        "t.a0": 0,
        "weight.l1.gating": 1,
    }
    coordinates = [Coordinate(name, 0.0, 1.0, 0.5, log=False, depth=depth) for name, depth in depths.items()]
    found = [coordinates[i].name for i in m2n2.by_depth(coordinates)]
    assert found == ["t.a0", "weight.l1.gating", "weight.g2.maths", "weight.g10.maths", "density", "lambda.code"]


def test_a_choice_is_taken_from_the_heavier_parent() -> None:
    coordinates = [*LONE, Coordinate("method", 0.0, 1.0, "ties", False, ("ties", "linear", "slerp"))]
    first = _units.to_units(coordinates, {"x": 0.0, "method": "ties"})
    second = _units.to_units(coordinates, {"x": 1.0, "method": "slerp"})
    for weight, method in ((0.4, "ties"), (0.6, "slerp")):
        child = _variation.mix(coordinates, first, second, np.full(2, weight))
        assert _units.to_genome(coordinates, child) == {"x": weight, "method": method}


def test_scores_below_zero_compete_as_they_do_when_shifted_above_it() -> None:
    scores = np.random.default_rng(0).normal(-3.0, 1.0, (5, 7))
    options = m2n2.Options(capacity="one")
    shifted = m2n2._shares(scores - scores.min(axis=0), options)
    assert (m2n2._shares(scores, options) == shifted).all()
    assert m2n2._shares(scores, options).sum(axis=0) == pytest.approx(np.ones(7))


def test_the_second_generation_fills_the_archive() -> None:
    sampler = make([at(0.2), at(0.8)], archive=9, population=4)
    assert [len(sampler.ask(number).genomes) for number in range(4)] == [2, 7, 4, 4]


def test_without_mutation_it_stays_between_the_known_points() -> None:
    sampler = make([at(0.2), at(0.8)], mutation=0.0)
    for number in range(10):
        values = [float(genome["x"]) for genome in sampler.ask(number).genomes]
        assert all(0.2 <= value <= 0.8 for value in values)
        sampler.tell(number, [result(value, 1.0 - value) for value in values])


def test_the_archive_follows_from_the_order_of_the_tells_alone() -> None:
    sampler, other = make([at(0.2), at(0.8)], archive=4), make([at(0.2), at(0.8)], archive=4)
    for each in (sampler, other):
        for number in range(4):
            each.ask(number)
    other.ask(7)  # never told
    for number in (2, 0, 3):
        for each in (sampler, other):
            each.tell(number, [result(x, x**2, 1 - x) for x in each._asked[number][:, 0].tolist()])
    assert sampler.ask(8).genomes == other.ask(8).genomes


def test_a_failed_candidate_does_not_enter_the_archive() -> None:
    sampler = make([at(0.2), at(0.8)])
    sampler.ask(0)
    sampler.tell(0, [Result(0.5, (0.5,), failed=True), result(0.5, 0.5)])
    assert kept(sampler) == [0.8]
    assert sampler.recommend() == at(0.8)


def test_it_recommends_the_best_by_plain_mean_however_fit_others_are() -> None:
    assert niches().recommend() == at(0.1)
    assert make([at(0.2)]).recommend() is None


def test_it_merges_two_specialists_into_a_generalist() -> None:
    """Half of the layers are to be one parent's, the other half the other's; a document asks for each layer."""
    wanted = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    starts: list[Genome] = [{c.name: value for c in LAYERS} for value in (0.0, 1.0)]
    sampler = make(starts, LAYERS)
    for number in range(30):
        genomes = sampler.ask(number).genomes
        found = np.array([list(genome.values()) for genome in genomes], dtype=float)
        sampler.tell(number, [result(*(abs(row - wanted) < 0.1)) for row in found])
    best = sampler.recommend()
    assert best is not None
    assert np.abs(np.array(list(best.values()), dtype=float) - wanted).max() < 0.1
