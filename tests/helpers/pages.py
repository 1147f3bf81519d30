"""The pages that people read, and the blocks of code in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
MANUAL = (README, *sorted(DOCS.glob("*.md")))
EXPERIMENTS = tuple(sorted((ROOT / "experiments").glob("**/*.md")))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. number: its place among the page's blocks of its language, from 0."""

    page: Path
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.stem}-{self.number}"


def blocks(language: str, pages: tuple[Path, ...] = MANUAL) -> list[Block]:
    """All blocks of a language, in the order of the pages."""
    return [
        Block(page, number, text)
        for page in pages
        for number, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL))
    ]


def manual() -> str:
    """The text of README and docs together."""
    return "\n".join(page.read_text() for page in MANUAL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
