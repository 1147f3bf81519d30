"""Commands on the plug-ins and files that ship with evomerge: `ls`, `cp`."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from evomerge import plugins
from evomerge.cli.app import JsonFlag, command, out, print_json
from evomerge.errors import ConfigError, StudyError, suggest
from evomerge.files import shipped
from evomerge.files.yaml import read_yaml


@command
def ls(
    kind: Annotated[
        str,
        typer.Argument(
            help="What to list: methods, samplers, operators, search_spaces or fitness; all of them by default."
        ),
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """List the methods, samplers, operators, search spaces and fitness files that there are."""
    kinds = (*plugins.KINDS, *shipped.KINDS)
    if kind and kind not in kinds:
        raise ConfigError("ls", [f"there is no kind {kind!r}.{suggest(kind, kinds)}"])
    listings = {name: _listing(name) for name in ([kind] if kind else kinds)}
    if as_json:
        print_json(listings)
        return
    for name, rows in listings.items():
        table = Table(title=name.replace("_", " "), title_justify="left", show_header=False, box=None)
        for row, about in rows.items():
            table.add_row(f"  {row}", about, style=None)
        out.print(table)


def _listing(kind: str) -> dict[str, str]:
    """Name -> a line on what it is, for all plug-ins or files of a kind."""
    if kind in plugins.KINDS:
        return {name: plugins.summary(kind, name) for name in plugins.names(kind)}
    return {name: _first_comment(shipped.folder(kind) / f"{name}.yaml") for name in shipped.names(kind)}


def _first_comment(path: Path) -> str:
    """The first sentence of the comment that a YAML file opens with."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return text.partition(". ")[0].removesuffix(".")


@command
def cp(
    name: Annotated[str, typer.Argument(help="The name of a shipped search space or fitness.", show_default=False)],
    destination: Annotated[
        Path, typer.Argument(help="The file or folder to copy to; the working directory by default.")
    ] = Path("."),
) -> None:
    """Copy a shipped search space or fitness file, with the tasks that it names, so that you can change it."""
    homes = [kind for kind in shipped.KINDS if name in shipped.names(kind)]
    if not homes:
        known = [one for kind in shipped.KINDS for one in shipped.names(kind)]
        raise ConfigError("cp", [f"nothing named {name!r} ships with evomerge.{suggest(name, known)}"])
    source = shipped.folder(homes[0]) / f"{name}.yaml"
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise StudyError(f"{target} exists already; give another name")
    try:
        include = read_yaml(source).get("include")
        if include and (target.parent / include).exists():
            raise StudyError(f"{target.parent / include} exists already; copy to another folder")
        shutil.copy(source, target)
        if include:  # a fitness file is no use without its tasks
            shutil.copytree(source.parent / include, target.parent / include)
    except OSError as error:
        raise StudyError(f"{target} cannot be written: {error.strerror}") from error
    out.print(f"copied to {target}", highlight=False, soft_wrap=True)


COMMANDS = (ls, cp)
