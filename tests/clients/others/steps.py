"""The steps that every client makes: list, charge, charge again, status.

Copied beside a client's program and run by that client's own Python: the standard library alone.
After each step the program waits until the runner has counted at the upstream.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """What to connect to, and what to charge; `url` is set over HTTP, `command` over stdio."""

    bill: dict[str, Any]
    url: str | None
    headers: dict[str, str]
    command: str
    args: list[str]
    env: dict[str, str]


def case() -> Case:
    """Read what the runner asks for."""
    return Case(**json.loads(os.environ["CASE"]))  # noqa: TID251 - a client's own program


def done(step: str, said: object) -> None:
    """Tell the runner what a step gave, and wait until it has counted."""
    sys.stdout.write(json.dumps({"step": step, "said": str(said)[:600]}) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


async def make_steps(
    names: Callable[[], Awaitable[list[str]]],
    call: Callable[[str, dict[str, Any]], Awaitable[Any]],
) -> None:
    """Make the four steps; `names` lists the tools, `call` uses one by its listed name."""
    bill = case().bill
    listed = await names()
    done("list", listed)
    charge, status = (
        next(name for name in listed if name.endswith(wanted)) for wanted in ("charge", "status")
    )
    done("charge", await call(charge, dict(bill)))
    done("again", await call(charge, dict(bill)))
    asked = {name: bill[name] for name in ("customer_id", "billing_period")}
    done("status", await call(status, asked))
