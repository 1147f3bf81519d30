"""Plug-ins are files: a module in a plug-in folder is a plug-in, and its name is the module's.

Kinds: `methods`, `operators`, `samplers`. Nothing is registered anywhere else. Modules whose names start
with an underscore are helpers, not plug-ins.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
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
    """The plug-ins of a kind, sorted. Imports the folder but none of the plug-ins."""
    if kind not in KINDS:
        raise ValueError(f"no plug-in kind {kind!r}; there are {', '.join(KINDS)}")
    folder = importlib.import_module(FOLDERS[kind])
    found = (module.name for module in pkgutil.iter_modules(folder.__path__) if not module.ispkg)
    return tuple(sorted(name for name in found if not name.startswith("_")))


def load(kind: str, name: str, where: str = "") -> ModuleType:
    """The plug-in's module.

    Raises:
        ConfigError: no such plug-in; the message lists those there are.
    """
    if name not in names(kind):
        raise ConfigError(where or kind, [f"unknown {kind[:-1]} {name!r}.{suggest(name, names(kind))}"])
    return importlib.import_module(f"{FOLDERS[kind]}.{name}")


def summary(kind: str, name: str) -> str:
    """The first line of a plug-in's docstring."""
    return (load(kind, name).__doc__ or "").strip().split("\n", 1)[0]
