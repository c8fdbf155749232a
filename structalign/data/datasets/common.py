"""What the data sets have in common: obtaining files, reading annotations, and videos that are not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from structalign import paths
from structalign.data.clips import Clip
from structalign.data.download import fetch, is_url
from structalign.util.errors import UserError, first_ten
from structalign.util.files import atomic_write_json, atomic_write_text, user_path
from structalign.util.log import log, progress

if TYPE_CHECKING:
    from structalign.config.schema import Config
    from structalign.config.section import Source

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")

_ENDS = 64 << 10  # bytes


def obtain(source: Source) -> Path:
    """Make a configured source available as a local, checked file.

    Mirrors are tried in turn, those first that were fetched before.

    Raises
    ------
    UserError
        If no mirror can be had; see `fetch`. The message has the reason of each.
    """
    mirrors, reasons = _mirrors(source), []
    for mirror in sorted(mirrors, key=lambda mirror: not _download(mirror).exists()):
        try:
            place = _download(mirror)
            return fetch(mirror if is_url(mirror) else str(place), place, source.sha256)
        except UserError as error:
            reasons.append(str(error))
            if len(reasons) < len(mirrors):
                log.warning(f"{error}: the next mirror is tried")
    raise UserError("; ".join(reasons))


def is_fetched(source: Source) -> bool:
    """Whether a source is fetched from elsewhere, all of its mirrors."""
    return all(map(is_url, _mirrors(source)))


def forget(source: Source) -> None:
    """Delete what was fetched, so that the next run fetches it again."""
    for mirror in filter(is_url, _mirrors(source)):
        _download(mirror).unlink(missing_ok=True)


def _mirrors(source: Source) -> list[str]:
    return [source.source] if isinstance(source.source, str) else source.source


def _download(source: str) -> Path:
    """Where a source is, or will be once it has been fetched."""
    if not is_url(source):
        return user_path(source)
    name = PurePosixPath(unquote(urlsplit(source).path)).name or "download"
    # Two servers may use one name for different files.
    return user_path(paths.DOWNLOADS) / f"{hashlib.sha256(source.encode()).hexdigest()[:8]}-{name}"


def video_root(config: Config) -> Path:
    """Return the folder, or the zip archive, that `Clip.video` is a path in.

    It is the user's folder (`data.videos`), the archive (`data.archive`, fetched if it is not here), or `paths.raw`
    if the videos are generated. Only generated videos are outputs of the pipeline: the others are read where they
    are, because DVC would copy them, and they can take hundreds of gigabytes.
    """
    if archive := getattr(config.data, "archive", None):
        return obtain(archive)
    videos = getattr(config.data, "videos", None)
    return user_path(videos) if videos else paths.raw(config.data.name)


def read_annotation_json(path: Path, max_bytes: int = 1 << 30) -> Any:
    """Read an annotation file.

    Raises
    ------
    UserError
        If it is missing, larger than `max_bytes`, not UTF-8 or not JSON.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise UserError(f"{path}: larger than {max_bytes:,} bytes, too large for an annotation file")
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def parse_json(content: bytes, where: str) -> Any:
    """Parse an annotation file; `where` names it in the `UserError` for what is not UTF-8 or not JSON."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not UTF-8 JSON: {error}") from None


def user_folder(path: str | None, key: str) -> Path:
    """Check that a parameter names a folder.

    Raises
    ------
    UserError
        If it names none; the message gives the parameter's `key`.
    """
    if not path:
        raise UserError(f"{key} is not set: name the folder of the videos, for example -S {key}=/path/to/videos")
    folder = user_path(path)
    if not folder.is_dir():
        raise UserError(f"{key} = {path}: no such folder")
    return folder


def list_files(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted; linked folders count as folders."""
    return sorted(path.relative_to(folder).as_posix() for path in _files(folder, frozenset()))


def _files(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link to a folder that it lies in: following it would never end
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, above | {real})
        else:
            yield path


def list_videos(folder: Path) -> list[str]:
    """Paths of all videos below a folder, relative to it, sorted.

    Raises
    ------
    UserError
        If there is none.
    """
    found = [path for path in list_files(folder) if path.lower().endswith(VIDEO_SUFFIXES)]
    if not found:
        raise UserError(f"{folder}: holds no video ({', '.join(VIDEO_SUFFIXES)})")
    return found


def by_id(paths: Iterable[str]) -> dict[str, str]:
    """Index video paths by their names without suffix; of two with one name the first is taken."""
    found: dict[str, str] = {}
    for path in paths:
        name = PurePosixPath(path).stem
        if name in found:
            log.warning(f"two videos named {name}: {found[name]} is used, {path} is not")
        found.setdefault(name, path)
    return found


def require_videos(missing: list[str], annotated: int, where: str, allowed: int, clips: Sequence[Clip] = ()) -> None:
    """Refuse a data set that lacks more annotated videos, or parts of videos, than may be left out.

    Parameters
    ----------
    missing : list of str
        Ids of annotated videos that are not there. All are written to `paths.MISSING_VIDEOS`.
    annotated : int
        How many were looked for.
    where : str
        Where they were looked for.
    allowed : int
        `frames.allow_missing`. Within it the clips stay annotated, and `frames` lists them as left out.
    clips : sequence of Clip
        Those whose segment has no length count as missing.

    Raises
    ------
    UserError
        The message names ten of them.
    """
    names = user_path(paths.MISSING_VIDEOS)
    empty = [
        f"{clip.origin or clip.id} ({clip.start or 0:g} to {clip.end:g} s)"
        for clip in clips
        if clip.end is not None and clip.end <= (clip.start or 0)
    ]
    if not missing and not empty:
        names.unlink(missing_ok=True)
        return
    atomic_write_text(names, "".join(f"{name}\n" for name in [*missing, *empty]))
    problems, listed = [], f", all listed in {paths.MISSING_VIDEOS}"
    if missing:
        problems.append(f"{len(missing)} of {annotated} videos are missing: {first_ten(missing, listed)}")
    if empty:
        problems.append(f"{len(empty)} of {annotated} segments have no length: {first_ten(empty, listed)}")
    message = f"{where}: {'; '.join(problems)}"
    count = len(missing) + len(empty)
    if count > allowed:
        raise UserError(f"{message}; fix them, or leave them out with frames.allow_missing={count} (now {allowed})")
    log.warning(f"{message}; left out, as frames.allow_missing = {allowed} allows")


def write_fingerprints(folder: Path, paths: Iterable[str], target: Path) -> None:
    """Note size and a checksum of both ends of each of the user's videos.

    DVC does not watch a folder outside the project. With this file among the outputs of `download`, frames are
    extracted again when videos have changed and `download` is run again.
    """
    marks = {}
    for path in progress(sorted(set(paths)), desc="fingerprint videos", unit="video"):
        with (folder / path).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest = hashlib.sha256(stream.read(_ENDS))
            stream.seek(max(0, size - _ENDS))
            digest.update(stream.read(_ENDS))
        marks[path] = {"bytes": size, "sha256_of_ends": digest.hexdigest()}
    atomic_write_json(target, marks)
