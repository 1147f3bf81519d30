"""What is MAP-Elites' own: cells, an archive for each task, tasks taken in turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.searching.samplers import Problem, Result, map_elites
from evomerge.searching.spaces.genes import Coordinate, Genome

SQUARE = [Coordinate(name, 0.0, 1.0, 0.5, log=False) for name in ("x", "y")]
START: Genome = {"x": 0.5, "y": 0.5}


def make(objectives: int, **options: Any) -> map_elites.MapElitesSampler:
    problem = Problem(SQUARE, 0, [START], objectives)
    return map_elites.make(problem, map_elites.Options.model_validate(options))


def scores(genome: Genome, objectives: int) -> tuple[float, ...]:
    """Task j is best at a corner of its own; to be good at one is to be bad at another."""
    corners = [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)][:objectives]
    return tuple(-abs(float(genome["x"]) - x) - abs(float(genome["y"]) - y) for x, y in corners)


def play(sampler: map_elites.MapElitesSampler, objectives: int, generations: int) -> np.ndarray:
    """All scores told, (candidates, objectives)."""
    told = []
    for number in range(generations):
        found = [scores(genome, objectives) for genome in sampler.ask(number).genomes]
        sampler.tell(number, [Result(float(np.mean(one)), one) for one in found])
        told += found
    return np.array(told)


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_best_of_each_task_is_kept(objectives: int) -> None:
    sampler = make(objectives)
    told = play(sampler, objectives, 20)
    for task, archive in enumerate(sampler._archives):
        assert sampler._scores[archive, task].max() == told[:, task].max()
    assert (told.max(axis=0) > -0.3).all()


def test_a_cell_holds_one_elite_the_best_on_the_archives_task() -> None:
    cells = np.array([[0], [1], [0], [1], [0]])
    assert map_elites._elites(np.array([0.1, 0.5, 0.3, 0.4, 0.2]), cells).tolist() == [2, 1]


def test_of_equals_the_first_told_is_the_elite() -> None:
    assert map_elites._elites(np.zeros(3), np.zeros((3, 2), dtype=int)).tolist() == [0]


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [1, 2, 3, 8])
def test_the_archives_stay_as_small_as_their_grids(objectives: int) -> None:
    random = np.random.default_rng(0)
    sampler = make(objectives, population=200)
    for number in range(15):
        genomes = sampler.ask(number).genomes
        found = [tuple(random.normal(size=objectives).tolist()) for _ in genomes]
        sampler.tell(number, [Result(float(np.mean(one)), one) for one in found])
    cells = sampler._bins ** max(objectives - 1, 1)
    assert all(len(archive) <= cells <= 128 for archive in sampler._archives)
    assert len(sampler._genomes) <= objectives * cells


def test_an_archive_spreads_over_the_scores_of_the_other_task() -> None:
    sampler = make(2, bins=8)
    play(sampler, 2, 30)
    for task, archive in enumerate(sampler._archives):
        assert len(archive) == 8
        assert np.ptp(sampler._scores[archive, 1 - task]) > 1.0


def test_cells_do_not_depend_on_the_scale_of_the_scores() -> None:
    told = np.random.default_rng(0).random((100, 3))
    cells = map_elites._cells(told, told, 5)
    assert (map_elites._cells(told * 1000 - 7, told * 1000 - 7, 5) == cells).all()
    assert set(cells.flat) == set(range(5))


def test_tasks_take_turns_as_the_quality() -> None:
    """Each task's archive is given one elite of its own, from which all children of its generations descend."""
    sampler = make(2, step=0.001)
    sampler._genomes, sampler._scores = np.array([[0.2, 0.2], [0.8, 0.8]]), np.zeros((2, 2))
    sampler._archives = [np.array([0]), np.array([1])]
    for number, value in ((4, 0.2), (5, 0.8), (6, 0.2)):
        assert all(abs(float(genome["x"]) - value) < 0.01 for genome in sampler.ask(number).genomes)


def test_elites_good_at_all_tasks_are_drawn_most() -> None:
    frequencies = map_elites._frequencies(np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 9.0]]))
    assert frequencies == pytest.approx([0.25, (0.5 + 0.06) * 0.5, 0.64])


def test_one_objective_is_searched_on_a_grid_of_one_dimension() -> None:
    sampler = make(1)
    told = play(sampler, 1, 20)
    best = sampler.recommend()
    assert best is not None
    assert scores(best, 1) == told.max()
    assert told.max() > -0.1
    assert 1 < len(sampler._genomes) <= sampler._bins


def test_of_several_objectives_none_is_recommended() -> None:
    sampler = make(2)
    assert sampler.recommend() is None
    play(sampler, 2, 3)
    assert sampler.recommend() is None


def test_failed_candidates_are_not_elites() -> None:
    sampler = make(2)
    sampler.ask(0)
    sampler.tell(0, [Result(9.0, (9.0, 9.0), failed=True)])
    assert not len(sampler._genomes)
    assert len(sampler.ask(1).genomes) == 16


def test_proposals_follow_from_the_order_of_the_tells_alone() -> None:
    sampler, other = make(3), make(3)
    for each in (sampler, other):
        asked = {number: each.ask(number).genomes for number in range(4)}
        if each is other:
            each.ask(9)  # never told
        for number in (2, 0, 3):
            found = [scores(genome, 3) for genome in asked[number]]
            each.tell(number, [Result(float(np.mean(one)), one) for one in found])
    assert sampler.ask(10).genomes == other.ask(10).genomes
