"""A Lambda runtime of one process: an event a line on stdin, an outcome a line on stdout.

Floor: the demo, run as `python -m kb_mcp.demo.lambda_runtime MODULE:FUNCTION`. Like the real one
it keeps the module warm between events, and turns what a handler raises into a message.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from typing import Any


def main() -> None:
    """Serve events until stdin ends."""
    module, _, function = sys.argv[1].partition(":")
    answers = sys.stdout
    # Whatever a handler prints is a log line, never an outcome.
    with contextlib.redirect_stdout(sys.stderr):
        handler = getattr(importlib.import_module(module), function)
        for line in sys.stdin:
            answers.write(json.dumps(_outcome(handler, json.loads(line))) + "\n")
            answers.flush()


def _outcome(handler: Any, event: object) -> dict[str, object]:
    try:
        return {"answer": handler(event, None)}
    except Exception as error:  # noqa: BLE001 - a runtime outlives its handler's mistakes
        # What the Stripe SDK knows about an error, where it is one of its own.
        body = getattr(error, "json_body", None)
        told = body.get("error", {}) if isinstance(body, dict) else {}
        return {
            "error": {
                "type": type(error).__name__,
                "message": str(error),
                "http_status": getattr(error, "http_status", None),
                "code": told.get("code"),
            }
        }


if __name__ == "__main__":
    main()
