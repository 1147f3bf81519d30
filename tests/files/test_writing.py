from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import evomerge
from evomerge.errors import StudyError
from evomerge.files import writing

PACKAGE = Path(evomerge.__file__).parent


def test_a_replaced_file_has_the_new_content_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.bin"
    for content in (b"first", b"second"):
        with writing.replacing(path) as aside:
            aside.write_bytes(content)
            assert aside.parent == path.parent
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["x.bin"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    writing.write_text(path, "old")
    with writing.replacing(path) as aside:
        aside.write_text("half")
        assert path.read_text() == "old"


def write_half(path: Path) -> None:
    with path.open("w", encoding="ascii") as file:
        file.write("half")
        file.flush()
        file.write("ä")


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    writing.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError), writing.replacing(path) as aside:
        write_half(aside)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_what_a_killed_writer_left_disturbs_no_later_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    code = (
        "import os, sys, pathlib\nfrom evomerge.files import writing\n"
        "with writing.replacing(pathlib.Path(sys.argv[1])) as aside:\n"
        "    aside.write_text('half')\n    os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], cwd=PACKAGE.parent, check=False).returncode == 9
    assert not path.exists()
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".x.")
    writing.write_text(path, "whole")
    assert path.read_text() == "whole"


def test_written_files_have_the_modes_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        writing.write_text(tmp_path / "x", "ä")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644
    assert (tmp_path / "x").read_bytes() == "ä".encode()


def test_a_disk_that_takes_no_file_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x"
    wanted = f"{path} cannot be written: File exists; what is finished is kept: choose another place"
    with pytest.raises(StudyError, match=re.escape(wanted)):
        writing.write_text(path, "text")
    with (
        pytest.raises(StudyError, match=r"Not a directory; it holds tables$"),
        writing.saving(path, "it holds tables"),
    ):
        path.write_text("text")


def test_a_full_disk_is_told_with_its_cure(tmp_path: Path) -> None:
    with (
        pytest.raises(StudyError, match=r"No space left on device; .* free some space"),
        writing.saving(tmp_path / "x"),
    ):
        raise OSError(28, "No space left on device")


def test_the_place_where_a_folder_is_filled_is_emptied_of_what_a_killed_process_left(tmp_path: Path) -> None:
    aside = writing.folder_aside(tmp_path / "model")
    (aside / "inner").mkdir(parents=True)
    assert writing.folder_aside(tmp_path / "model") == aside
    assert not aside.exists()


def test_an_existing_output_is_refused_unless_it_is_an_empty_folder(tmp_path: Path) -> None:
    for free in (tmp_path / "none", tmp_path):
        writing.refuse_existing(free)
    (tmp_path / "file").write_text("")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(StudyError, match=f"^{re.escape(str(taken))} exists already; give another folder"):
            writing.refuse_existing(taken)
    with pytest.raises(StudyError, match=r"^study: it is taken$"):
        writing.refuse_existing(tmp_path, "study: it is taken")


def test_nothing_in_the_package_renames_a_file_by_itself() -> None:
    renaming = re.compile(r"\baside\.(replace|rename)\(|os\.(replace|rename)\(")
    users = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if renaming.search(path.read_text())
    }
    # Folders are put in their place by those that fill them: what stands there already is their own matter.
    assert users == {"files/writing.py", "demo/family.py", "results/exporting/folder.py"}
