"""Commands that start fast: each is a process, forked from one that has imported everything.

What runs in a fork is `kb-mcp …` from its command line on; only Python's own start is saved.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[1]
SECONDS_MAX = 60
_MESSAGE_MAX = 1 << 20
_COMMANDS = (ROOT / "kb_mcp" / "cli").glob("[a-z]*.py")
_PRELOADED = ("kb_mcp.wiring.proxy", "psycopg", *(f"kb_mcp.cli.{each.stem}" for each in _COMMANDS))


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `kb-mcp` with these arguments to its end, with nothing to read and this environment.

    Raises: TimeoutExpired after a minute.
    """
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        line.settimeout(SECONDS_MAX)
        line.connect(_server())
        asked = json.dumps([list(arguments), dict(environ)]).encode()
        socket.send_fds(line, [asked], [out.fileno(), err.fileno()])
        pid = int(line.recv(64))
        try:
            code = int(line.recv(64))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(list(arguments), SECONDS_MAX) from None
        return subprocess.CompletedProcess(list(arguments), code, _text(out), _text(err))


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


@cache
def _server() -> str:
    """Start the process that forks, once for this one, and return its address."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    address = f"{folder.name}/socket"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forks", address], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def end() -> None:
        stdin.close()
        stdout.close()
        process.wait(SECONDS_MAX)
        folder.cleanup()

    atexit.register(end)
    assert stdout.readline() == b"ready\n"
    return address


def _serve(address: str) -> None:
    """Fork a process for each connection, until stdin ends."""
    import gc
    import importlib

    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever ends is reaped at once
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(100)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _answer(connection)
        connection.close()


def _answer(line: socket.socket) -> None:
    """Fork the command, and say which process it is and how it ended. Returns in the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(line, _MESSAGE_MAX, 2)
    pid = os.fork()
    if pid == 0:
        line.close()
        arguments, environ = json.loads(message)
        _become(arguments, environ, streams)
    line.send(str(pid).encode())
    line.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def _become(arguments: list[str], environ: dict[str, str], streams: list[int]) -> NoReturn:
    from kb_mcp.cli import main

    os.environ.clear()  # noqa: TID251 - the environment of a child
    os.environ.update(environ)  # noqa: TID251 - as above
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    main(arguments, prog_name="kb-mcp")
    sys.exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
