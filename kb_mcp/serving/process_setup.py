"""How a process is set up: to start fast, to serve, and to log.

Floor: serving, at the bottom. Logs are plain lines for a person, or a JSON object a line for a
machine, on stderr, so that stdout stays what a command says.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from typing_extensions import override

from kb_mcp.instants import rfc3339

# The writer's thread computes while the event loop asks for the lock some ten times a request:
# at CPython's own 5 ms a turn, a busy process would answer nobody for seconds.
LOCK_TURN_S = 0.0005
GARBAGE_AFTER = 50_000


@contextmanager
def uncollected() -> Iterator[None]:
    """Import and build without the collector, and keep what is there from its later rounds.

    Once in a process, and for one that serves from then on. Importing makes much that stays and
    nearly no garbage; going through all of it two hundred times was a tenth of a start.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def ready_to_serve() -> None:
    """Set the interpreter up for a server: short turns of its lock, few walks for garbage.

    What is loaded by now stays for good, and is not walked again.
    """
    sys.setswitchinterval(LOCK_TURN_S)
    gc.collect()
    gc.freeze()
    collect_seldom()


def collect_seldom() -> None:
    """Walk for garbage once in GARBAGE_AFTER new objects: ten thousand rows are none of it."""
    gc.set_threshold(GARBAGE_AFTER)


LogFormat = Literal["text", "json"]
TEXT_MAX = 4_000


class JsonLines(logging.Formatter):
    """Writes `time level logger message` and, where there is one, `error`, as ASCII JSON."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        # Late: a door that serves MCP over stdio imports nothing of the proxy.
        from kb_mcp.proxy.errors.refusals import mask_secrets

        document = {
            "time": rfc3339(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": mask_secrets(record.getMessage())[:TEXT_MAX],
        }
        if record.exc_info:
            document["error"] = mask_secrets(self.formatException(record.exc_info))[-TEXT_MAX:]
        return json.dumps(document, separators=(",", ":"))


def configure_logs(form: LogFormat) -> None:
    """Send every log line from INFO on to stderr, in `form`."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else plain)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Each request of the MCP door and of httpx would be a line: the audit is where those stand.
    # uvicorn tells what `up` says better, and before a wrong setting is told in its one line.
    for name in ("mcp", "httpx", "httpcore", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
