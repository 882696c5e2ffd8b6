"""Named queries and migrations from the .sql files, in the dialect of each store.

Floor: below the stores. A query begins at "-- name: x"; comment lines under it explain it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_MIGRATION = re.compile(r"^(\d{4})_\w+\.(\w+)\.sql$")
_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")
# Shared SQL is PostgreSQL's. SQLite takes a list as a JSON array, needs no types named, and
# compares text byte by byte as it is.
_SQLITE = (
    (re.compile(r"= ANY\((:\w+)::text\[\]\)"), r"IN (SELECT value FROM json_each(\1))"),
    (
        re.compile(r"unnest\((:\w+)::text\[\]\) AS (\w+) \((\w+)\)"),
        r"(SELECT value AS \3 FROM json_each(\1)) AS \2",
    ),
    (re.compile(r'::\w+| COLLATE "C"'), ""),
    (re.compile(r"\bstrpos\("), "instr("),
)


@lru_cache
def load_queries(engine: str) -> Mapping[str, str]:
    """Return the named queries of `engine` ("sqlite" or "postgres"), shared ones included."""
    folder = files(__package__)
    found: dict[str, str] = {}
    for file in (folder / "queries.sql", folder / engine / "queries.sql"):
        parts = _NAME.split(file.read_text())[1:]
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            lines = (line for line in body.splitlines() if not line.startswith("--"))
            found[name] = dialect(engine, "\n".join(lines).strip())
    return found


@lru_cache(maxsize=256)
def dialect(engine: str, text: str) -> str:
    """Return shared SQL as the driver of `engine` takes it; parameters are named, like `:id`."""
    if engine == "postgres":
        return _PARAMETER.sub(r"%(\1)s", text)
    for pattern, replacement in _SQLITE:
        text = pattern.sub(replacement, text)
    return text


def load_migrations(engine: str) -> list[tuple[int, str]]:
    """Return (number, script) of every migration of `engine`, in order."""
    found = []
    for file in (files(__package__) / "sql").iterdir():
        match = _MIGRATION.match(file.name)
        if match and match[2] == engine:
            found.append((int(match[1]), file.read_text()))
    return sorted(found)


def load_grants() -> str:
    """Return the statements that give a serving process's role its rights in PostgreSQL."""
    return (files(__package__) / "postgres" / "grants.sql").read_text()
