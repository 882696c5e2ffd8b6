"""How a user of a door talks with a test: a bill a line on stdin, an answer a line on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]


def serve(charge: Callable[[Json], Json]) -> None:
    """Say that the door is open, then charge a bill for every line, until stdin ends."""
    say("ready")
    for line in sys.stdin:
        say(json.dumps(charge(json.loads(line))))


def say(line: str) -> None:
    """Write a line to the test."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def texts(bill: Json) -> list[Json]:
    """Return a bill as Bedrock writes arguments: every value is text."""
    return [{"name": name, "type": "string", "value": str(value)} for name, value in bill.items()]
