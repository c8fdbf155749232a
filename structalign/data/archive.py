"""Read files out of a zip archive from elsewhere: nothing that leaves its folder, no links, and within a size.

Videos are decoded from the archive, one at a time through a temporary copy: a second copy of them on disk, and a
third in DVC's cache, would be of no use.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath

from structalign.data.clips import check_relative
from structalign.util.errors import UserError

MAX_BYTES = 256 << 30
"""Bytes that an archive's files may have together, unpacked."""

_CANNOT_READ = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)


def members(archive: Path, max_bytes: int = MAX_BYTES) -> dict[str, zipfile.ZipInfo]:
    """List the plain files of a zip archive by their names; links and devices are passed over.

    Raises
    ------
    UserError
        If it is no intact zip archive, a name leads out of its folder or occurs twice, a file is encrypted, or the
        files have more than `max_bytes` together.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for info in _opened(archive).infolist():
        if info.is_dir():
            continue
        check_relative(info.filename, f"{archive}: refused")
        if info.filename in found:
            raise UserError(f"{archive}: member {info.filename!r} occurs twice: refused")
        if info.flag_bits & 1:
            raise UserError(f"{archive}: member {info.filename!r} is encrypted; unpack the archive, name its folder")
        # A mode of 0 comes from systems without modes.
        if stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG):
            found[info.filename] = info
    total = sum(info.file_size for info in found.values())
    if total > max_bytes:
        raise UserError(f"{archive}: would unpack to {total:,} bytes, more than the {max_bytes:,} that are allowed")
    return found


def read_member(archive: Path, name: str, max_bytes: int = 1 << 30) -> bytes:
    """Read one file of a zip archive into memory.

    Raises
    ------
    UserError
        If it is not there, larger than `max_bytes`, or damaged.
    """
    with _copied(archive, name, max_bytes) as path:
        return path.read_bytes()


@contextmanager
def video_file(root: Path, video: str) -> Iterator[Path]:
    """Yield where a video can be read: below a folder, or as a temporary copy if `root` is a zip archive.

    Raises
    ------
    UserError
        If the archive does not hold the video, or it is damaged.
    """
    if root.is_file():
        with _copied(root, video) as copy:
            yield copy
    else:
        yield root / video


def content_mark(root: Path, video: str) -> tuple[int, int]:
    """Tell the content of a video that is there without reading it.

    Its size, and the checksum that an archive has of it, or the time when a file changed.
    """
    if root.is_file():
        info = _member(root, video)
        return info.file_size, info.CRC
    status = (root / video).stat()
    return status.st_size, status.st_mtime_ns


@contextmanager
def _copied(archive: Path, name: str, max_bytes: int = MAX_BYTES) -> Iterator[Path]:
    # The copy keeps the suffix, by which FFmpeg tells some formats. zipfile reads no more bytes than the archive's
    # directory says, and checks them at the end.
    with tempfile.NamedTemporaryFile(suffix=PurePosixPath(name).suffix) as copy:
        try:
            if _member(archive, name).file_size > max_bytes:
                raise UserError(f"{archive}: member {name!r} has more than {max_bytes:,} bytes")
            with _opened(archive).open(name) as stream:
                shutil.copyfileobj(stream, copy, 1 << 20)
        except _CANNOT_READ as error:
            raise _damaged(archive, error) from None
        copy.flush()
        yield Path(copy.name)


def _member(archive: Path, name: str) -> zipfile.ZipInfo:
    try:
        return _opened(archive).getinfo(name)
    except KeyError:
        raise UserError(f"{archive}: holds no {name!r}") from None


def _opened(archive: Path) -> zipfile.ZipFile:
    """Open an archive once for all its files: reading a directory of 10,000 takes a tenth of a second."""
    try:
        return _opened_as_of(archive, archive.stat().st_mtime_ns)
    except FileNotFoundError:
        raise UserError(f"{archive}: no such archive") from None
    except _CANNOT_READ as error:
        raise _damaged(archive, error) from None


@lru_cache(maxsize=1)
def _opened_as_of(archive: Path, _mtime: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


def _damaged(archive: Path, error: Exception) -> UserError:
    return UserError(
        f"{archive}: damaged, or no zip archive ({error}); replace it, or delete it to have it fetched again. "
        "Archives of other kinds must be unpacked: name the folder"
    )
