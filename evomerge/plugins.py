"""Plug-ins are files: a module in a plug-in folder is a plug-in, and its name is the module's.

Kinds: `methods`, `operators`, `samplers`. Nothing is registered anywhere else. Modules whose names start
with an underscore are helpers, not plug-ins.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType

from evomerge.errors import ConfigError, suggest

FOLDERS = {
    "methods": "evomerge.merging.methods",
    "operators": "evomerge.operators",
    "samplers": "evomerge.searching.samplers",
}
KINDS = tuple(FOLDERS)


@cache
def names(kind: str) -> tuple[str, ...]:
    """The names of a kind's plug-ins, sorted. Imports none of them."""
    if kind not in KINDS:
        raise ValueError(f"no plug-in kind {kind!r}; there are {', '.join(KINDS)}")
    return tuple(sorted(path.stem for path in _folder(kind).glob("*.py") if not path.name.startswith("_")))


def load(kind: str, name: str, where: str = "") -> ModuleType:
    """The plug-in's module.

    Args:
        where: what names the plug-in in a person's file, for the message.

    Raises:
        ConfigError: there is no such plug-in; the message lists those that there are.
    """
    if name not in names(kind):
        raise ConfigError(where or kind, [f"unknown {kind[:-1]} {name!r}.{suggest(name, names(kind))}"])
    return importlib.import_module(f"{FOLDERS[kind]}.{name}")


def summary(kind: str, name: str) -> str:
    """The first line of a plug-in's docstring, read without importing the plug-in."""
    source = (_folder(kind) / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _folder(kind: str) -> Path:
    """The folder of a kind's plug-ins on disk."""
    return Path(__file__).parent.joinpath(*FOLDERS[kind].split(".")[1:])
