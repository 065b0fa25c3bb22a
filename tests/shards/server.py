"""A web server on loopback that misbehaves as told. In: a folder. Out: its bytes, by range."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Server(ThreadingHTTPServer):
    """Serves `folder`; every request is noted in `seen`.

    Attributes:
        ranges: whether range requests are understood.
        fail: so many of the next GET requests are answered with 503 (or `status`).
        hang_s: every GET waits so long.
        redirect: Location of the answer to every request.
        cut: bytes of a body after which the connection breaks, for the next `fail` requests.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.seen: list[str] = []
        self.ranges, self.fail, self.status, self.hang_s = True, 0, 503, 0.0
        self.redirect: str | None = None
        self.cut: int | None = None

    def handle_error(self, request: object, address: object) -> None:
        """A reader that has gone is none of the server's business."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        asked = self.headers.get("Range", "")
        self.server.seen.append(f"{self.command} {self.path} {asked}".strip())
        if body and self.server.hang_s:
            time.sleep(self.server.hang_s)
        if self.server.redirect is not None:
            return self._send(302, b"", Location=self.server.redirect)
        failing = body and self.server.fail > 0
        self.server.fail -= failing
        if failing and self.server.cut is None:
            return self._send(self.server.status, b"busy")
        path = self.server.folder / self.path.lstrip("/").partition("?")[0]
        if not path.is_file():
            return self._send(404, b"none")
        data, status, extra = path.read_bytes(), 200, {}
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        if found and self.server.ranges:
            first, last = int(found[1]), min(int(found[2]), len(data) - 1)
            extra = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            data, status = data[first : last + 1], 206
        return self._send(status, data, body=body, cut=failing, **extra)

    def _send(
        self, status: int, data: bytes, *, body: bool = True, cut: bool = False, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command == "GET":
            try:
                self.wfile.write(data[: self.server.cut] if cut else data)
            except OSError:
                pass  # the reader has gone
        if cut:
            self.close_connection = True


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A running server."""
    server = Server(folder)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
