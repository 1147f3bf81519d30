"""lm-eval tasks found by name, without indexing all of lm-eval's own."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from lm_eval.tasks import TaskManager

from evomerge.errors import ConfigError, one_line
from evomerge.scoring.lm_eval_parts import TASKS_FOLDER, check_yaml, is_local, is_task, knows
from evomerge.scoring.reports import TaskSpec

_NAMED = re.compile(r"""^(?:task|group|tag): *["']?([\w.+-]+)""", re.MULTILINE)


def task_manager(specs: Sequence[TaskSpec], include: Path | None) -> TaskManager:
    """A task manager that knows all names of the specs.

    Indexing lm-eval's own 15,000 names takes many seconds. It is done for its groups and tags only: a task under
    `include` needs none of them, and one of lm-eval's own tasks needs only those folders that mention it.

    Args:
        include: folder of local task YAML files.

    Raises:
        ConfigError: the folder does not exist, or a name is unknown; all unknown names at once.
    """
    if include is not None and not include.is_dir():
        raise ConfigError("fitness", [f"include: there is no folder {include}"])
    names = [spec.task for spec in specs]
    own = [] if include is None else [str(include)]
    local = TaskManager(include_path=own, include_defaults=False)
    foreign = [name for name in names if not is_local(local, name)]
    if not foreign:
        return local
    folders, known = _mentions(tuple(foreign))
    unknown = [name for name in foreign if not knows(local, name) and not folders[name]]
    if not unknown:
        mentioned = sorted({folder for some in folders.values() for folder in some}, reverse=True)
        narrow = TaskManager(include_path=[*map(str, mentioned), *own], include_defaults=False)
        if all(is_task(narrow, name) for name in foreign):
            return narrow
        whole = TaskManager(include_path=own)
        unknown = [name for name in foreign if not knows(whole, name)]
        if not unknown:
            return whole
    nearest = sorted(known.union(local.all_tasks))
    raise ConfigError("fitness", [_unknown(name, nearest, include) for name in unknown])


@functools.lru_cache(maxsize=4)
def _mentions(names: tuple[str, ...]) -> tuple[dict[str, set[Path]], frozenset[str]]:
    """Name -> the folders of lm-eval's tasks whose YAML mentions it; and all names that lm-eval's YAML defines."""
    folders: dict[str, set[Path]] = {name: set() for name in names}
    words = {name: re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])") for name in names}
    known: set[str] = set()
    for path in TASKS_FOLDER.glob("*/**/*.yaml"):
        text = path.read_text(encoding="utf-8", errors="replace")
        known.update(_NAMED.findall(text))
        for name in names:
            if name in text and words[name].search(text):
                folders[name].add(TASKS_FOLDER / path.relative_to(TASKS_FOLDER).parts[0])
    return folders, frozenset(known)


def _unknown(name: str, known: Sequence[str], include: Path | None) -> str:
    """The fault of an unknown name, with the nearest known ones and the task files that cannot be read."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    broken = [] if include is None else _broken_yaml(include)
    return f"unknown task {name!r}.{hint}" + "".join(f" {fault}" for fault in broken)


def _broken_yaml(include: Path) -> list[str]:
    """A fault for each task file that lm-eval cannot read."""
    faults = []
    for path in sorted(include.glob("**/*.yaml")):
        try:
            check_yaml(path)
        except Exception as error:
            faults.append(f"{path} cannot be read: {one_line(error)}.")
    return faults
