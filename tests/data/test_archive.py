"""Archives from elsewhere: what is read from them, and what is not; tests/helpers/bad_cases.py has more refusals."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from structalign.data.archive import members, read_member, video_file
from structalign.util.errors import UserError
from tests.helpers.remote import zip_of


def test_files_are_listed_and_read(tmp_path: Path) -> None:
    contents = {"top/a.txt": b"a" * 10, "top/sub/b.txt": b"", "c.mp4": os.urandom(2_500_000)}
    archive = zip_of(tmp_path / "archive.zip", contents | {"folder/": b""})
    assert {name: info.file_size for name, info in members(archive).items()} == {
        name: len(content) for name, content in contents.items()
    }
    for name, content in contents.items():
        assert read_member(archive, name) == content
    with pytest.raises(UserError, match="holds no 'none'"):
        read_member(archive, "none")
    with pytest.raises(UserError, match="more than 100 bytes"):
        read_member(archive, "c.mp4", max_bytes=100)


def test_a_video_is_copied_while_it_is_read(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "archive.zip", {"videos/a.mp4": b"video"})
    with video_file(archive, "videos/a.mp4") as path:
        assert path.read_bytes() == b"video"
        assert path.suffix == ".mp4"
    assert not path.exists()
    (tmp_path / "b.mp4").write_bytes(b"other")
    with video_file(tmp_path, "b.mp4") as path:
        assert path == tmp_path / "b.mp4"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR])
def test_links_and_devices_are_no_files(tmp_path: Path, kind: int) -> None:
    archive = zip_of(tmp_path / "archive", {"a.txt": b"a", "odd": b"/etc"}, {"odd": kind | 0o777})
    assert list(members(archive)) == ["a.txt"]


def test_an_archive_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "archive", {"a.txt": b"a"})
    assert read_member(archive, "a.txt") == b"a"
    zip_of(archive, {"a.txt": b"another"})
    os.utime(archive, ns=(1, 1))
    assert read_member(archive, "a.txt") == b"another"


def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such archive"):
        members(tmp_path / "none.zip")
