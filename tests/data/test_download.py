"""Downloads against a server on this machine that misbehaves on request."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from structalign.config.section import Source
from structalign.data import download as module
from structalign.data.datasets import common as sources
from structalign.data.download import fetch
from structalign.util.errors import UserError
from tests.helpers.errors import refused
from tests.helpers.remote import CONTENT, SHA256, Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "BACKOFF", 0.0)
    running = Server()
    yield running
    running.close()


def test_download_is_whole_and_leaves_nothing_beside_it(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "downloads" / "file.bin"
    assert fetch(f"{server.url}/file.bin", target, SHA256) == target
    assert target.read_bytes() == CONTENT
    assert {path.name for path in target.parent.iterdir()} == {"file.bin", "file.bin.lock"}
    assert fetch(f"{server.url}/file.bin", target, SHA256) == target
    assert len(server.requests) == 1, "a file that is there and has the right checksum is not fetched again"


def test_runs_that_want_one_file_fetch_it_once(server: Server, tmp_path: Path) -> None:
    # The first is cut off and waits before it asks again; meanwhile the second comes.
    server.cuts = [2_000_000]
    target = tmp_path / "file.bin"
    with ThreadPoolExecutor(4) as pool:
        fetched = [pool.submit(fetch, f"{server.url}/file.bin", target, SHA256) for _ in range(4)]
    assert {one.result() for one in fetched} == {target}
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_progress_counts_every_byte_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    def recording(*args: object) -> object:
        bars.append(original(*args))
        return bars[-1]

    original = module.progress_bar
    monkeypatch.setattr(module, "progress_bar", recording)
    server.cuts = [1_500_000]
    fetch(f"{server.url}/file.bin", tmp_path / "file.bin")
    assert [bar.total for bar in bars] == [len(CONTENT)] * 2
    assert bars[0].n < len(CONTENT)
    assert bars[1].n == len(CONTENT)
    assert bars[1].initial == bars[0].n


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_truncated_transfers_are_continued(server: Server, tmp_path: Path, sha256: str | None) -> None:
    server.cuts = [2_000_000, 600_000]
    fetch(f"{server.url}/file.bin", tmp_path / "file.bin", sha256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.requests[0] is None
    assert all(request is not None for request in server.requests[1:])
    assert server.sent < 1.5 * len(CONTENT)


def test_a_later_run_continues(server: Server, tmp_path: Path) -> None:
    server.cuts = [2_000_000] + [0] * module.ATTEMPTS
    target = tmp_path / "file.bin"
    with pytest.raises(UserError, match=r"cannot be fetched"):
        fetch(f"{server.url}/file.bin", target, SHA256)
    assert not target.exists()
    sent = server.sent
    fetch(f"{server.url}/file.bin", target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.sent - sent < len(CONTENT)


def test_a_complete_part_needs_no_transfer(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(f"{server.url}/file.bin", tmp_path / "file.bin", SHA256)
    assert server.sent == 0
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    fetch(f"{server.url}/file.bin", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(server: Server, tmp_path: Path) -> None:
    server.cuts = [2_000_000] + [0] * module.ATTEMPTS
    with pytest.raises(UserError):
        fetch(f"{server.url}/file.bin", tmp_path / "file.bin")
    server.content, server.etag = b"new" * 900_000, '"two"'
    fetch(f"{server.url}/file.bin", tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == server.content


@pytest.mark.parametrize(("etag", "ranges"), [(None, True), ('"one"', False)])
def test_without_an_etag_or_ranges_a_download_starts_again(
    server: Server, tmp_path: Path, etag: str | None, ranges: bool
) -> None:
    server.etag, server.ranges = etag, ranges
    server.cuts = [2_000_000]
    fetch(f"{server.url}/file.bin", tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.sent > len(CONTENT)


def test_a_server_that_never_finishes_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [700_000, 900_000, 800_000] * 20
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(f"{server.url}/file.bin", tmp_path / "file.bin")
    assert len(server.requests) < 15


def test_busy_servers_are_asked_again_missing_files_are_not(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 503]
    fetch(f"{server.url}/file.bin", tmp_path / "file.bin")
    assert len(server.requests) == 3
    server.statuses = [404]
    with pytest.raises(UserError, match="404"):
        fetch(f"{server.url}/other.bin", tmp_path / "other.bin")
    assert len(server.requests) == 4
    assert not (tmp_path / "other.bin").exists()


def test_a_server_cannot_ask_for_a_wait_of_hours(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RETRY_AFTER", 0)
    server.statuses, server.retry_after = [429], "7200"
    assert fetch(f"{server.url}/file.bin", tmp_path / "file.bin").read_bytes() == CONTENT


def test_an_unreachable_server_is_one_clear_line(server: Server, tmp_path: Path) -> None:
    server.close()
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(f"{server.url}/file.bin", tmp_path / "file.bin")


def test_a_finished_file_with_another_checksum_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"stale")
    fetch(f"{server.url}/file.bin", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_full_disk_is_reported_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="only 1,000 are free"):
        fetch(f"{server.url}/file.bin", tmp_path / "file.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin.lock"]


def test_local_path_is_checked_and_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "mine.bin"
    path.write_bytes(CONTENT)
    assert fetch(str(path), tmp_path / "target", SHA256) == path
    assert not (tmp_path / "target").exists()
    with pytest.raises(UserError, match=f"mine.bin.*{SHA256}.*{'1' * 64}"):
        fetch(str(path), tmp_path / "target", "1" * 64)
    with pytest.raises(UserError, match="no such file"):
        fetch(str(tmp_path / "none"), tmp_path / "target")
    with pytest.raises(UserError, match="folder"):
        fetch(str(tmp_path), tmp_path / "target", SHA256)


def test_urls_with_one_file_name_do_not_share_a_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = sources.obtain(Source(source=f"{server.url}/a/..%2F..%2Ffile.bin"))
    server.content = b"second"
    second = sources.obtain(Source(source=f"{server.url}/b/file.bin"))
    assert first.read_bytes() == CONTENT
    assert second.read_bytes() == b"second"
    assert first.parent == second.parent == Path("data/downloads")


def test_queued_runs_share_the_projects_downloads(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc/tmp/exps/tmp1"  # where DVC runs what was queued, and which it throws away
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    path = sources.obtain(Source(source=f"{server.url}/file.bin"))
    assert path.resolve().parent == tmp_path / "data/downloads"


def test_mirrors_are_tried_in_turn(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    urls = [f"{server.url}/one/file.bin", f"{server.url}/two/file.bin"]
    server.statuses = [404]
    found = sources.obtain(Source(source=urls))
    assert found.read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert sources.obtain(Source(source=urls)) == found, "what was fetched before is taken first"
    assert len(server.requests) == 2
    found.unlink()
    server.statuses = [404, 403]
    with pytest.raises(UserError, match=r"one/file.bin: .*404.*; .*two/file.bin: .*403"):
        sources.obtain(Source(source=urls))
    (tmp_path / "mine.bin").write_bytes(CONTENT)
    assert sources.obtain(Source(source=["none.bin", "mine.bin"], sha256=SHA256)) == Path("mine.bin")


def test_another_checksum_is_an_error(server: Server, here: Path) -> None:
    with refused(f"checksum mismatch: SHA-256 is {SHA256}, expected {'0' * 64}", leaves={"file.bin.lock"}):
        fetch(f"{server.url}/file.bin", "file.bin", "0" * 64)


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_that_is_too_large(server: Server, here: Path, lengths: bool) -> None:
    server.lengths = lengths
    parts = {"file.bin.lock", "file.bin.part", "file.bin.part.validator"}
    with refused("1,000,000 are allowed", leaves=parts):
        fetch(f"{server.url}/file.bin", "file.bin", max_bytes=1_000_000)


@pytest.mark.parametrize("url", ["ftp://example.org/x", "file:///etc/passwd"])
def test_other_protocols_are_refused(here: Path, url: str) -> None:
    with refused("http or https"):
        fetch(url, "file.bin")
