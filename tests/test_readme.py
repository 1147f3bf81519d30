"""README is one page that sells and starts; what it says of the demo and of docs/ holds."""

from __future__ import annotations

import re

from typer.main import get_command

from evomerge.cli.main import app
from tests.helpers.pages import DOCS, README, ROOT, blocks

TEXT = README.read_text()


def test_it_is_one_page() -> None:
    assert len(TEXT.splitlines()) <= 120


def test_two_commands_set_everything_up_and_the_next_lines_go_on_from_there() -> None:
    setup, onwards, *_ = (block.text for block in blocks("bash", (README,)))
    assert [line.split("#")[0].split() for line in setup.splitlines()] == [["make", "demo"], ["make", "test"]]
    assert onwards.startswith("source .venv/bin/activate; cd evomerge-demo\n")
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^VENV +:= \.venv$", makefile, re.MULTILINE)
    assert re.search(r"^demo: \$\(READY\)$", makefile, re.MULTILINE)
    assert re.search(r"^lint: \$\(READY\)$", makefile, re.MULTILINE)


def test_it_shows_every_command() -> None:
    shown = {
        line.split()[1]
        for block in blocks("bash", (README,))
        for line in block.text.splitlines()
        if "evo" in line[:3]
    }
    assert shown | {"demo"} == set(get_command(app).commands)  # type: ignore[attr-defined]


def test_it_leads_to_every_page() -> None:
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} <= set(re.findall(r"\]\(([^)#]+)\)", TEXT))
