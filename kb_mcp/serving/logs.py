"""Logs of a serving process: plain lines for a person, or a JSON object a line for a machine.

Floor: serving. On stderr, so that stdout stays what a command says.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from typing_extensions import override

from kb_mcp.proxy.errors.scrub import mask_secrets

LogFormat = Literal["text", "json"]
TEXT_MAX = 4_000


class JsonLines(logging.Formatter):
    """Writes `time level logger message` and, where there is one, `error`, as ASCII JSON."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        document = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
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
