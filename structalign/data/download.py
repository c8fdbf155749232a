"""Getting files from elsewhere: downloads that are resumed and checked."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from structalign.util.errors import UserError
from structalign.util.log import log, progress_bar

CHUNK = 1 << 20
MAX_RETRY_AFTER = 60  # seconds; some servers ask for hours
TIMEOUT = (10, 60)  # seconds: to connect, and between two pieces
ATTEMPTS = 5
BACKOFF = 1.0  # seconds before the second attempt; doubles with each


def is_url(source: str) -> bool:
    """Whether `source` is to be fetched; anything else is a path on this machine.

    Raises
    ------
    UserError
        For a scheme other than http and https.
    """
    scheme, separator, _ = source.partition("://")
    if separator and scheme not in ("http", "https"):
        raise UserError(f"{source}: give an http or https URL, or a path on this machine")
    return bool(separator)


def fetch(source: str, target: str | Path, sha256: str | None = None, max_bytes: int = 64 << 30) -> Path:
    """Make `source` available as a checked file on this machine.

    Parameters
    ----------
    source : str
        An http or https URL, or a local path, from which nothing is fetched or copied.
    target : path
        Where a download ends up. Until it is whole and checked it is `<target>.part`, which the next call
        continues; a target that is there already is checked, not fetched again.
    sha256 : str, optional
        Checksum in hexadecimal that the file must have.
    max_bytes : int
        A larger file is refused.

    Returns
    -------
    Path
        `target` for an URL, the local path itself otherwise.

    Raises
    ------
    UserError
        If the source is missing, unreachable or too large, or its checksum does not match.
    """
    if not is_url(source):
        return _checked_local(Path(source).expanduser(), sha256)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(target):
        return _fetch_url(source, target, sha256, max_bytes)


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Let one process at a time fetch a file; runs of DVC's queue share what is fetched."""
    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info(f"{target}: another run is fetching it; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_url(source: str, target: Path, sha256: str | None, max_bytes: int) -> Path:
    if target.exists():
        if sha256 is None or sha256_of(target) == sha256:
            return target
        log.warning(f"{target} does not have the checksum expected of {source}: fetched again")
        target.unlink()
    part = target.with_name(target.name + ".part")
    _Transfer(source, part, pinned=sha256 is not None, max_bytes=max_bytes).run()
    if sha256 is not None:
        found = sha256_of(part)
        if found != sha256:
            _discard(part)
            raise UserError(
                f"{source}: checksum mismatch: SHA-256 is {found}, expected {sha256}; the file was removed"
            )
    os.replace(part, target)
    _discard(part)
    return target


def _checked_local(path: Path, sha256: str | None) -> Path:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a path on this machine or an http(s) URL")
    if sha256 is not None:
        if path.is_dir():
            raise UserError(f"{path}: is a folder, which has no checksum; set its sha256 to null")
        found = sha256_of(path)
        if found != sha256:
            raise UserError(f"{path}: checksum mismatch: SHA-256 is {found}, expected {sha256}")
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream, _byte_bar(path.stat().st_size, f"check {path.name}") as bar:
        while piece := stream.read(CHUNK):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def _byte_bar(total: int | None, desc: str, done: int = 0) -> tqdm:
    bar = progress_bar(total, desc, "B")
    bar.unit_scale = True
    bar.initial = bar.n = done
    return bar


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


class _Transfer:
    """One download into a `.part` file, continued where an earlier attempt or an earlier run broke off."""

    def __init__(self, url: str, part: Path, pinned: bool, max_bytes: int) -> None:
        self.url = url
        self.part = part
        self.pinned = pinned
        self.max_bytes = max_bytes
        self.session = requests.Session()
        # Refused connections and busy servers are retried here, broken transfers in `run`.
        retry = Retry(
            total=ATTEMPTS,
            backoff_factor=BACKOFF,
            status_forcelist=(429, 500, 502, 503, 504),
            retry_after_max=MAX_RETRY_AFTER,
        )
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=retry))

    def run(self) -> None:
        """Fetch until nothing is missing; give up after `ATTEMPTS` in a row that brought nothing new."""
        best, failures = self._size(), 0
        with self.session:
            while (problem := self._attempt()) is not None:
                failures = 0 if self._size() > best else failures + 1
                best = max(best, self._size())
                if failures >= ATTEMPTS:
                    raise self._given_up(problem)
                log.warning(f"{self.url}: broke off after {self._size():,} bytes; continuing")
                time.sleep(BACKOFF * 2**failures)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _given_up(self, problem: Exception | str) -> UserError:
        reason = " ".join(str(problem).split())
        return UserError(f"{self.url}: cannot be fetched ({reason}); try again, or give a local path instead")

    def _attempt(self) -> Exception | str | None:
        """Try once; return what went wrong on the way, None when the file is whole."""
        offset = self._usable_offset()
        try:
            response = self.session.get(self.url, headers=self._headers(offset), stream=True, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise self._given_up(error) from None
        with response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return self._after_the_end(response, offset)
            if not response.ok:
                raise self._given_up(f"the server answers {response.status_code} {response.reason}")
            if offset and not _continues(response, offset):
                offset = 0  # the server sends it all: the file has changed, or ranges are unknown to it
            try:
                self._receive(response, offset)
            except requests.RequestException as error:
                return error
        return None

    def _usable_offset(self) -> int:
        """Count the bytes worth keeping: those that a checksum or the server can verify."""
        return self._size() if self.pinned or _validator_file(self.part).exists() else 0

    def _headers(self, offset: int) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}  # so that sizes and ranges are those of the file itself
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if _validator_file(self.part).exists():
                headers["If-Range"] = _validator_file(self.part).read_text(encoding="latin-1")
        return headers

    def _after_the_end(self, response: requests.Response, offset: int) -> str | None:
        """Handle the answer to a range that starts at or beyond the end: the file is whole, or another."""
        if response.headers.get("Content-Range") == f"bytes */{offset}":
            return None
        _discard(self.part)
        return "what was fetched before does not fit"

    def _receive(self, response: requests.Response, offset: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = offset + int(length) if length.isdigit() else None
        if total is not None:
            self._check_size(total)
            check_room(self.part.parent, total - offset, self.url)
        with (
            self.part.open("ab" if offset else "wb") as stream,
            _byte_bar(total, f"fetch {self.part.stem}", done=offset) as bar,
        ):
            if not offset:  # only now that the old bytes are gone may the new ones' name replace theirs
                self._note_validator(response)
            for piece in response.iter_content(CHUNK):
                self._check_size(stream.tell() + len(piece))
                stream.write(piece)
                bar.update(len(piece))

    def _note_validator(self, response: requests.Response) -> None:
        etag = response.headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        if validator:
            _validator_file(self.part).write_text(validator, encoding="latin-1")
        else:
            _validator_file(self.part).unlink(missing_ok=True)

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            _discard(self.part)
            raise UserError(f"{self.url}: {size:,} bytes or more, but only {self.max_bytes:,} are allowed")


def _continues(response: requests.Response, offset: int) -> bool:
    partial_content = response.status_code == requests.codes.partial_content
    return partial_content and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse what the disk cannot hold before the first byte is written.

    Raises
    ------
    UserError
        If fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{what}: needs {needed:,} bytes in {folder}, but only {free:,} are free")
