"""A relay before the sandbox that stops a charge at a named point, until the test says go on.

Real sockets, so that a proxy can be killed while its request is exactly there.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import override

POINTS = ("arrived", "executed", "half answered")
LONG_S = 60


class Gate:
    """`hold(point)` stops the next charge there: `reached` says when, `go_on` or `drop` ends it."""

    def __init__(self) -> None:
        self.url = ""
        self.target = ""
        self.served = 0
        self.answered = threading.Event()
        self._at: str | None = None
        self._lock = threading.Lock()
        self._reached = threading.Event()
        self._released = threading.Event()
        self._dropped = False

    def hold(self, point: str) -> None:
        """Stop the next charge at `point`."""
        assert point in POINTS
        self._reached, self._released = threading.Event(), threading.Event()
        self.answered, self._dropped = threading.Event(), False
        self._at = point

    def wait(self) -> None:
        """Return once a charge has come to the point."""
        assert self._reached.wait(LONG_S), "nothing came to the gate"

    def go_on(self) -> None:
        """Let it pass."""
        self._at = None
        self._released.set()

    def drop(self) -> None:
        """Lose it there."""
        self._at, self._dropped = None, True
        self._released.set()

    def pass_by(self, point: str) -> bool:
        """Stop here if this is the point; say whether to go on afterwards."""
        with self._lock:
            if self._at != point:
                return True
            self._at = None
            reached, released = self._reached, self._released
        reached.set()
        released.wait(LONG_S)
        return not self._dropped

    def forward(self, method: str, path: str, headers: Any, body: bytes) -> Answer:
        """Ask the sandbox, and return its whole answer."""
        parts = urlsplit(self.target)
        line = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=LONG_S)
        try:
            line.request(method, path, body or None, headers)
            answer = line.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            line.close()


Answer = tuple[int, list[tuple[str, str]], bytes]


@contextmanager
def gate() -> Iterator[Gate]:
    """Serve a gate on a free port of loopback until the block ends."""
    made = Gate()

    class Handler(BaseHTTPRequestHandler):
        def _relay(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            charging = self.command == "POST" and self.path.startswith("/v1/charges")
            if charging and not made.pass_by("arrived"):
                return
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            try:
                answer = made.forward(self.command, self.path, headers, body)
            except OSError:
                return  # the sandbox is down, or was killed meanwhile
            made.served += charging
            if charging and not made.pass_by("executed"):
                return
            self._answer(*answer, halved=charging)

        def _answer(
            self, status: int, headers: list[tuple[str, str]], body: bytes, *, halved: bool
        ) -> None:
            lines = "".join(
                f"{name}: {value}\r\n"
                for name, value in headers
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}
            )
            head = f"HTTP/1.1 {status} X\r\n{lines}Connection: close\r\n"
            whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            try:
                self.wfile.write(whole[: len(whole) // 2])
                self.wfile.flush()
                if halved and not made.pass_by("half answered"):
                    return
                self.wfile.write(whole[len(whole) // 2 :])
                if halved:
                    made.answered.set()
            except OSError:
                return  # whoever asked was killed

        do_GET = do_POST = _relay  # noqa: N815 - names that http.server looks for

        @override
        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        made.drop()
        server.shutdown()
        thread.join()
        server.server_close()
