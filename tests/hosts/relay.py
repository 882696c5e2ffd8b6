"""A relay between a host and its store that can stall, as a cut network does."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Carries bytes between its own port and `target`; while stalled it keeps them."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._going = threading.Event()
        self._going.set()
        self._ended = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """Carry nothing, and say nothing about it."""
        self._going.clear()

    def resume(self) -> None:
        """Carry again, what was kept first."""
        self._going.set()

    def close(self) -> None:
        """End every connection."""
        self._ended = True
        self._going.set()
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while not self._ended:
            try:
                near, _ = self._listener.accept()
                self._going.wait()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                continue
            self._sockets += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                self._going.wait()
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
