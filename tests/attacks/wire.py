"""Raw bytes to a listener and back: no client library tidies an attack up on its way."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any, Self

ANSWER_WITHIN_S = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The code of an error in Stripe's shape."""
        parsed = self.json() if self.body else {}
        error = parsed.get("error") if isinstance(parsed, dict) else None
        return error.get("code") if isinstance(error, dict) else None


class Wire:
    """`with Wire(address) as wire:` is one connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=ANSWER_WITHIN_S)
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, octets: bytes) -> None:
        """Send what the peer still takes: it may have answered and left already."""
        try:
            self.socket.sendall(octets)
        except (BrokenPipeError, ConnectionResetError):
            return

    def answer(self) -> Answer | None:
        """Read one answer, or None where the connection ends without one."""
        while b"\r\n\r\n" not in self._read:
            if not self._more():
                return None
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        if status == 100:
            return self.answer()
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, self._chunks())
        length = int(headers.get("content-length", 0))
        while len(self._read) < length:
            assert self._more(), "the answer was cut"
        body, self._read = self._read[:length], self._read[length:]
        return Answer(status, headers, body)

    def rest(self) -> bytes:
        """Read until the peer closes."""
        while self._more():
            pass
        rest, self._read = self._read, b""
        return rest

    def _chunks(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self._read:
                assert self._more(), "the answer was cut"
            size, _, self._read = self._read.partition(b"\r\n")
            length = int(size, 16)
            while len(self._read) < length + 2:
                assert self._more(), "the answer was cut"
            body += self._read[:length]
            self._read = self._read[length + 2 :]
            if length == 0:
                return body

    def _more(self) -> bool:
        try:
            more = self.socket.recv(65_536)
        except ConnectionResetError:
            return False
        self._read += more
        return bool(more)


def ask(address: tuple[str, int], octets: bytes, *, closes: bool = False) -> Answer:
    """Send `octets` on a connection of their own and return the one answer.

    With `closes`, the peer must end the connection behind it.
    """
    with Wire(address) as wire:
        wire.send(octets)
        answer = wire.answer()
        assert answer is not None, "no answer"
        if closes:
            assert wire.rest() == b"", "a second answer"
        return answer
