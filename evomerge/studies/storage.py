"""The key `storage` of an experiment, which says where the log of finished trials is kept."""

from __future__ import annotations

import re
from pathlib import Path

IN_FILE, IN_SQLITE, SQLITE_URL = "journal", "sqlite", "sqlite:///"  # the values without a server

_DATABASE = re.compile(r"(sqlite:///(?!:memory:).+|(postgresql|mysql)(\+[a-z0-9]+)?://.+)")


def known_storage(value: str) -> str:
    """Returns a text that is a storage, and refuses any other. The message does not repeat the text, which may hold
    a password.

    Raises:
        ValueError: the text is no storage.
    """
    if value not in (IN_FILE, IN_SQLITE) and not _DATABASE.fullmatch(value):
        raise ValueError(
            "must be journal, sqlite, sqlite:///PATH, or a database's URL: postgresql://USER@HOST/NAME"
        )
    if not value.startswith("sqlite:") and value.partition("?")[0].count("@") > 1:
        raise ValueError("has more than one @: within a user's name or password write it %40")
    return value


def resolve_storage(storage: str, folder: Path) -> str:
    """A storage whose path, if it has a relative one, is made absolute from a folder."""
    path = storage.removeprefix(SQLITE_URL)
    if path == storage or path.startswith("${"):
        return storage
    return f"{SQLITE_URL}{(folder / Path(path).expanduser()).resolve()}"
