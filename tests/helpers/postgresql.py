"""A private PostgreSQL server, where there is one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "s3cr@t/{x}:%"


def binaries() -> Path:
    """Where PostgreSQL's programs are; the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    if path := shutil.which("initdb"):
        return Path(path).resolve().parent
    pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")


def serve() -> Iterator[str]:
    """A private PostgreSQL server on a Unix socket; gives a `storage` with the password in the environment."""
    pytest.importorskip("psycopg2")
    programs = binaries()
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # which PostgreSQL refuses
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="evomerge-") as home:  # socket paths are short
        if account:
            os.chown(home, account["user"], account["group"])
        (Path(home) / "password").write_text(PASSWORD)

        def call(program: str, *arguments: str) -> None:
            command = [str(programs / program), "-D", f"{home}/data", *arguments]
            subprocess.run(command, check=True, cwd=home, stdout=subprocess.DEVNULL, **account)

        call("initdb", "--auth=scram-sha-256", f"--pwfile={home}/password", "--username=evo", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={home} -c fsync=off"
        call("pg_ctl", "start", "--wait", "-l", f"{home}/log", "-o", options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EVOMERGE_TEST_PASSWORD", PASSWORD)
            yield f"postgresql://evo:${{EVOMERGE_TEST_PASSWORD}}@/postgres?host={home}"
        call("pg_ctl", "stop", "--wait", "-m", "immediate")
