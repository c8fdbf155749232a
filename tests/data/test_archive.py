"""Archives from elsewhere: what is read from them, and what is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from structalign.data.archive import MAX_BYTES, members, read_member, video_file
from structalign.util.errors import UserError
from tests.helpers.errors import refused
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
def test_links_and_devices_are_skipped(tmp_path: Path, kind: int) -> None:
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


def read_all(max_bytes: int = MAX_BYTES) -> None:
    for name in members(Path("archive"), max_bytes):
        read_member(Path("archive"), name)


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil-structalign.txt", "..\\evil.txt", "C:/evil.txt"]
)
def test_members_outside_the_archive_are_refused(here: Path, name: str) -> None:
    zip_of(here / "archive", {"good.txt": b"good", name: b"evil"})
    with refused("evil"):
        read_all()


NOISE = np.random.default_rng(0).bytes(3 << 20)
TWO = {"a.bin": NOISE[:100_000], "b.bin": NOISE[:100_000]}


def encrypted(content: bytes) -> bytes:
    place = content.index(b"PK\x01\x02") + 8
    return content[:place] + bytes([content[place] | 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("contents", "change", "said"),
    [
        (TWO, lambda content: content[:150_000], "damaged"),
        (TWO, lambda content: content[:50_000] + bytes([content[50_000] ^ 255]) + content[50_001:], "damaged"),
        (TWO, lambda content: b"", "damaged"),
        (TWO, lambda content: b"<html>Not found</html>", "damaged, or no zip"),
        (
            {"zeros": bytes(8 << 20)},
            lambda content: content.replace((8 << 20).to_bytes(4, "little"), b"\xe8\x03\0\0"),
            "damaged",
        ),
        ({"a.txt": b"a", "b.txt": b"b"}, lambda content: content.replace(b"b.txt", b"a.txt"), "twice"),
        ({"a.txt": b"a"}, encrypted, "encrypted"),
    ],
    ids=["cut", "a byte flipped", "empty", "a web page", "a size that lies", "a name twice", "encrypted"],
)
def test_damaged_archives(
    here: Path, contents: dict[str, bytes], change: Callable[[bytes], bytes], said: str
) -> None:
    archive = zip_of(here / "archive", contents)
    archive.write_bytes(change(archive.read_bytes()))
    with refused(said):
        read_all()


def test_an_archive_that_would_unpack_to_too_much(here: Path) -> None:
    zip_of(here / "archive", {"noise": NOISE})
    with refused("would unpack to 3,145,728 bytes"):
        read_all(1 << 20)
