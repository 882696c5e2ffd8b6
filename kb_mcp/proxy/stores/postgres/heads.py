"""Heads of a PostgreSQL store, and which server this host saw last.

Floor: inside the stores. A restored or promoted server has another identity: it may lack what the
old one acknowledged, on this host's word or another's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typing_extensions import override

from kb_mcp.proxy.audit.heads import Heads
from kb_mcp.proxy.stores.postgres.fence import Server

_SEEN = "server"


class PostgresHeads(Heads):
    """`Heads`, and the server beside them, in a file that all processes of this host share."""

    def __init__(
        self,
        folder: Path,
        node: str,
        owner: str,
        monotonic_ms: Callable[[], int],
        now_ms: Callable[[], int],
    ) -> None:
        """Export as `node` to `folder`; see `Heads`."""
        super().__init__(folder, node, owner, monotonic_ms, now_ms)
        self._seen = folder / _SEEN

    def seen(self) -> Server | None:
        """Return the server that this host saw last, if any."""
        try:
            record = json.loads(self._seen.read_text())
            return Server(str(record["system_identifier"]), str(record["timeline"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, server: Server) -> None:
        """Remember `server`; every charge of ours was found in it, or it is the first."""
        record = {"system_identifier": server.system_identifier, "timeline": server.timeline}
        self._write(self._seen, record)

    @override
    def forget(self) -> None:
        super().forget()
        self._seen.unlink(missing_ok=True)
