"""A line that breaks: hands requests on, and closes the connection instead of some answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from typing_extensions import override

NOT_HANDED_ON = frozenset({"host", "content-length", "connection", "transfer-encoding"})


@contextmanager
def broken_line(target: str, answers_lost: int) -> Iterator[str]:
    """Serve a relay to `target` that loses its first answers, after the target has given them."""
    left = [answers_lost]

    class Relay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            sent = {n: v for n, v in self.headers.items() if n.lower() not in NOT_HANDED_ON}
            answer = httpx.post(
                target + self.path, content=body, headers=sent, timeout=60, trust_env=False
            )
            if left[0]:
                left[0] -= 1
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in NOT_HANDED_ON:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        @override
        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
