"""What a study looks at first: points of earlier studies, model stock's, the base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.studies import experiment, journal, life, study
from evomerge.studies.plan import Plan, make_plan
from evomerge.studies.trials import Trial, best_trial
from tests.helpers.family import experiment_mapping

WEIGHT = {"low": 0.0, "high": 1.5, "init": 0.55, "per": ["layer", "expert"]}
SPACE: dict[str, Any] = {"method": "task_arithmetic", "layers": {"groups": 2}, "genes": {"weight": WEIGHT}}
FINER: dict[str, Any] = {**SPACE, "layers": {"groups": 3}}
OTHER: dict[str, Any] = {
    "method": "task_arithmetic",
    "genes": {"lambda": WEIGHT | {"per": []}},
    "fixed": {"weight": 1},
}
SHORT: dict[str, Any] = {"space": SPACE, "sampler": {"name": "random", "population": 2}, "warm_start": False}


class Silent:
    """An observer that stops the search after so many trials, as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.left = stop_after

    def generation(self, number: int, size: int) -> None:
        pass

    def trial(self, trial: Trial) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def begin(path: Path) -> Plan:
    plan = make_plan(experiment.load_experiment(path))
    life.create(plan.experiment)
    return plan


def what_counts(trials: list[Trial]) -> list[Any]:
    return [(t.number, t.generation, t.slot, t.genome, t.recipe, t.value, t.weights_sha256) for t in trials]


@pytest.fixture(scope="module")
def earlier(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of three candidates."""
    folder = tmp_path_factory.mktemp("earlier")
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment_mapping(family, folder / "study", **SHORT, budget={"candidates": 3})))
    study.search(begin(path), Silent())
    return folder / "study"


def best(folder: Path) -> dict[str, Any]:
    winner = best_trial(journal.read_trials(folder))
    assert winner is not None
    return winner.genome


def test_a_study_of_the_same_space_starts_from_the_best_point(
    write_experiment: Callable[..., Path], earlier: Path
) -> None:
    plan = make_plan(experiment.load_experiment(write_experiment(**SHORT, starts=[str(earlier)])))
    assert plan.experiment.starts == (best(earlier),)


def test_of_other_layer_groups_those_of_the_same_names_are_taken(
    write_experiment: Callable[..., Path], earlier: Path
) -> None:
    plan = make_plan(
        experiment.load_experiment(write_experiment(**{**SHORT, "space": FINER}, starts=[str(earlier)]))
    )
    rest = {f"weight.g2.{expert}": 0.55 for expert in ("ant", "bee")}
    assert plan.experiment.starts == ({**best(earlier), **rest},)


@pytest.mark.parametrize("command", ["run", "check"])
def test_starts_that_cannot_be_are_refused_before_anything_is_made(
    write_experiment: Callable[..., Path], earlier: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "empty").mkdir()
    unfinished = begin(write_experiment("unfinished.yaml", **SHORT, study=str(tmp_path / "unfinished")))
    journal.Journal(unfinished.folder, unfinished.coordinates)
    for starts, messages in (
        ([str(earlier)], ["starts: ", "searched another space: none of its coordinates is in this one"]),
        (
            [str(tmp_path / "empty"), str(tmp_path / "nowhere"), str(tmp_path / "unfinished")],
            [
                "empty is no study",
                "nowhere is no study",
                "unfinished has no finished trial",
                "take it off the list",
            ],
        ),
        ([{"lamda": 0.5}], ["starts: 0.lamda: is no coordinate of the space. Did you mean 'lambda'?"]),
    ):
        path = write_experiment(**{**SHORT, "space": OTHER}, starts=starts)
        result = CliRunner().invoke(app, [command, str(path)])
        assert result.exit_code == 2
        assert isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        assert "starting workers" not in result.output
        for message in messages:
            assert message in result.output
        assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_started_study_needs_the_earlier_one_no_more(
    write_experiment: Callable[..., Path], earlier: Path, tmp_path: Path
) -> None:
    shutil.copytree(earlier, tmp_path / "gone")
    options = {**SHORT, "starts": [str(tmp_path / "gone")], "budget": {"candidates": 5}}
    whole = study.search(begin(write_experiment("whole.yaml", **options, study=str(tmp_path / "whole"))), Silent())
    assert whole[0].genome == best(earlier)
    plan = begin(write_experiment("parts.yaml", **options, study=str(tmp_path / "parts")))
    with pytest.raises(KeyboardInterrupt):
        study.search(plan, Silent(1))
    shutil.rmtree(tmp_path / "gone")
    reopened = life.reopen(tmp_path / "parts")
    assert reopened.starts == (best(earlier),)
    assert what_counts(study.search(make_plan(reopened), Silent())) == what_counts(whole)


def test_a_start_may_be_given_as_it_is(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    switched = {**SPACE, "genes": {"weight": WEIGHT, "switch": {"per": ["expert"]}}}
    path = write_experiment(**{**SHORT, "space": switched}, starts=[{"weight.g0.ant": 1, "switch.bee": "off"}])
    path.write_text(path.read_text().replace("'off'", "off"))  # as people write it, and YAML reads as false
    (start,) = begin(path).experiment.starts
    assert isinstance(start, dict)
    assert (start["weight.g0.ant"], start["weight.g0.bee"], start["switch.bee"]) == (1.0, 0.55, "off")
    assert life.reopen(tmp_path / "study").starts == (start,)


def test_angles_are_measured_before_workers_start_and_once(write_experiment: Callable[..., Path]) -> None:
    options = {**SHORT, "warm_start": True, "budget": {"candidates": 8}}
    plan = begin(write_experiment(**options))
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        study.search(plan, Silent(2), told.append)
    assert told.index("measuring angles for a warm start") < told.index("starting workers")
    told.clear()
    trials = study.search(plan, Silent(), told.append)
    assert "measuring angles for a warm start" not in told
    stock, base = trials[6].genome, trials[7].genome  # behind the init, three sizes and two experts alone
    assert all(0.0 <= float(value) <= 0.5 for value in stock.values())
    assert set(base.values()) == {0.0}
    assert trials[7].generation == 0
