"""Named queries from the .sql files of each store.

Floor: below the stores. A query begins at "-- name: x"; comment lines under it explain it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

from kb_mcp.proxy.ledger.records import State

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_MIGRATION = re.compile(r"^(\d{4})_\w+\.(\w+)\.sql$")


def load_queries(engine: str) -> Mapping[str, str]:
    """Return the named queries of `engine` ("sqlite" or "postgres")."""
    text = (files(__package__) / engine / "queries.sql").read_text()
    parts = _NAME.split(text)[1:]
    return {
        name: _without_comments(body) for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def load_migrations(engine: str) -> list[tuple[int, str]]:
    """Return (number, script) of every migration of `engine`, in order."""
    found = []
    for file in (files(__package__) / "sql").iterdir():
        match = _MIGRATION.match(file.name)
        if match and match[2] == engine:
            found.append((int(match[1]), file.read_text()))
    return sorted(found)


def state_clauses(state: str | None) -> list[str]:
    """Return the condition on operations in `state`, spelled so that planners see its index.

    A value that is bound later tells a planner nothing; a state that there is not matches nothing.
    """
    if state is None:
        return []
    if state not in set(State):
        return ["1 = 0"]
    finished = state == State.SUCCEEDED
    return [f"state = '{state}'", *(() if finished else ("state <> 'succeeded'",))]


def load_grants() -> str:
    """Return the statements that give a serving process's role its rights in PostgreSQL."""
    return (files(__package__) / "postgres" / "grants.sql").read_text()


def _without_comments(body: str) -> str:
    lines = (line for line in body.splitlines() if not line.startswith("--"))
    return "\n".join(lines).strip()
