"""Commands that only look something up, or refuse, answer without the libraries that take seconds to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from evomerge.studies import study
from tests.helpers.family import experiment_mapping
from tests.helpers.studies import Silent, begin

HEAVY = ("torch", "transformers", "lm_eval", "ray")

# The exit code of each command line, and a word of what it says. They are all called in one process: what one of
# them imports is blamed on all that follow, so the first to fail is the one to look at.
CALLS = {
    "--help": (0, "Evolutionary merging"),
    "--version": (0, "0."),
    "run --help": (0, "Run a search"),
    "resume --help": (0, "Go on with a study"),
    "status --help": (0, "Show how a study stands"),
    "certify --help": (0, "Compare"),
    "export --help": (0, "Build a trial's model"),
    "promote --help": (0, "Begin the next round"),
    "merge --help": (0, "Build one model"),
    "extend --help": (0, "Extend one model's context"),
    "distill --help": (0, "Train one model"),
    "score --help": (0, "Score any"),
    "check --help": (0, "Check an experiment"),
    "ls": (0, "dare_ties"),
    "ls methods --json": (0, "dare_ties"),
    "cp dare_ties_by_layer mine.yaml": (0, "copied to"),
    "status study": (0, "finished"),
    "status study --json": (0, '"finished": true'),
    "resume study": (0, "nothing is left to do"),
    "status nothere": (2, "is no study"),
    "resume nothere": (2, "is no study"),
    "resume study --candidates 2": (2, "has 8 already"),
    "export nothere out": (2, "is no study"),
    "certify nothere": (2, "is no study"),
    "promote nothere out": (2, "is no study"),
    "export study study": (2, "exists already"),
    "run nothere.yaml": (2, "cannot be read"),
    "check nothere.yaml": (2, "cannot be read"),
    "check faulty.yaml": (2, "populaton"),
    "run faulty.yaml": (2, "context_extention"),
    "run again.yaml": (2, "holds a study already"),
    "cp nothing": (2, "nothing named 'nothing'"),
    "ls nothing": (2, "there is no kind 'nothing'"),
    "export study": (2, "Missing argument"),
    "status study --top 0": (2, "Invalid value for '--top'"),
    "score model --fitness tiny_skills --split none": (2, "--split: is 'none'"),
    "nothing": (2, "No such command"),
}

_CODE = """
import contextlib, io, json, sys
from evomerge.cli import app as shared
from evomerge.cli.main import app
for line in json.loads(sys.argv[1]):
    said = io.StringIO()
    shared.out.file = shared.err.file = said
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            app(line.split(), prog_name="evomerge")
        except SystemExit as end:
            code = end.code
    loaded = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    print(json.dumps([code, loaded, " ".join(said.getvalue().split())]))
"""


class Answer(NamedTuple):
    """What became of a command line."""

    code: int
    loaded: list[str]
    said: str


@pytest.fixture(scope="module")
def answers(family: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What became of each command line, called beside a small study that is at its end."""
    folder = tmp_path_factory.mktemp("quick")
    experiment = experiment_mapping(family, folder / "study", budget={"candidates": 8})
    (folder / "again.yaml").write_text(yaml.safe_dump(experiment))
    faulty = {**experiment, "sampler": {"name": "cma", "populaton": 6}, "operators": ["context_extention"]}
    (folder / "faulty.yaml").write_text(yaml.safe_dump(faulty))
    study.search(begin(folder / "again.yaml"), Silent())
    command = [sys.executable, "-c", _CODE, json.dumps(list(CALLS)), json.dumps(HEAVY)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=300)
    return {line: Answer(*json.loads(answer)) for line, answer in zip(CALLS, done.stdout.splitlines(), strict=True)}


@pytest.mark.parametrize("line", CALLS)
def test_a_quick_command_imports_none_of_the_heavy_libraries(answers: dict[str, Answer], line: str) -> None:
    code, said = CALLS[line]
    assert answers[line].code == code
    assert said in answers[line].said
    assert answers[line].loaded == []
