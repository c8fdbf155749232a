"""A server on this machine that misbehaves on request, and archives of any content."""

from __future__ import annotations

import contextlib
import hashlib
import re
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONTENT = bytes(range(256)) * 4096 * 3  # 3 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `content` under every path, with ranges; what goes wrong is set on it."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag: str | None = '"one"'
        self.ranges = True
        self.lengths = True
        self.cuts: list[int] = []  # break off the next responses after as many bytes
        self.statuses: list[int] = []  # answer the next requests with these
        self.retry_after: str | None = None  # what they say beside it
        self.requests: list[str | None] = []  # the Range of each request
        self.sent = 0
        handler = type("Handler", (_Handler,), {"server_state": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server_state
        wanted = self.headers.get("Range")
        state.requests.append(wanted)
        status = state.statuses.pop(0) if state.statuses else 200
        if status != 200:
            self.send_response(status)
            if state.retry_after:
                self.send_header("Retry-After", state.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if wanted and state.ranges and self.headers.get("If-Range", state.etag) == state.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        body = state.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
        if state.lengths:
            self.send_header("Content-Length", str(len(body)))
        if state.etag:
            self.send_header("ETag", state.etag)
        self.end_headers()
        cut = state.cuts.pop(0) if state.cuts else len(body)
        state.sent += len(body[:cut])  # before the client can have it all
        with contextlib.suppress(ConnectionError):  # the client may have seen enough
            self.wfile.write(body[:cut])


def zip_of(path: Path, members: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content)
    return path
