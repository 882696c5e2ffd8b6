"""The live audit: new rows to a browser as server-sent events, for as long as a session lasts.

Floor: operators, beside the pages. Bounded: so many streams, so many rows a turn, so long a stream;
a browser that is cut off comes back by itself. Following does not keep an idle session alive.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response, StreamingResponse

from kb_mcp.operators.dashboard.charts import label_of
from kb_mcp.operators.dashboard.render import written
from kb_mcp.operators.reports.views import Views
from kb_mcp.operators.sign_in import Sessions
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.port import LedgerUnavailableError

EVERY_S = 1
TURNS_MAX = 900
ROWS_MAX = 100
STREAMS_MAX = 20
_TEXT_MAX = 200
_SHOWN = "id time kind decision code customer_id operation_id key_id agent_id method path note"


@dataclass(slots=True)
class Live:
    """Follows the audit for those who are logged in."""

    views: Views
    sessions: Sessions
    stopping: Callable[[], bool]
    streams: int = 0

    def follow(self, session_id: str) -> Response:
        """Return a stream of rows from here on, or 503 where there are too many streams."""
        if self.streams >= STREAMS_MAX:
            return Response(status_code=503, headers={"retry-after": "30"})
        return StreamingResponse(self._events(session_id), media_type="text/event-stream")

    async def _events(self, session_id: str) -> AsyncIterator[str]:
        self.streams += 1
        try:
            last: Any = self.views.records.newest_row()
            yield "retry: 3000\n\n"
            for _ in range(TURNS_MAX):
                await asyncio.sleep(EVERY_S)
                if self.stopping() or not self.sessions.holds(session_id):
                    return
                try:
                    rows = list(self.views.records.audit(limit=ROWS_MAX, after_row=last))
                    labels = await self._labels(rows)
                except LedgerUnavailableError:
                    continue
                if not rows:
                    # A comment: it finds out that the browser has gone.
                    yield ":\n\n"
                for row in rows:
                    last = row["row"]
                    yield f"data: {event(row, labels)}\n\n"
        finally:
            self.streams -= 1

    async def _labels(self, rows: Sequence[Record]) -> dict[str, str]:
        ids = sorted({row["key_id"] for row in rows} - {None})
        found = await self.views.records.keys_by_id(ids) if ids else ()
        return {key.id: label_of(key) for key, _ in found}


def event(row: Record, labels: Mapping[str, str]) -> str:
    """Return what a browser shows of a row, as ASCII JSON on one line; texts are cleaned.

    `labels` are what people call the keys, by id.
    """
    shown = {name: _text(row[name]) for name in _SHOWN.split()}
    shown["key"] = _text(labels.get(row["key_id"]))
    if row["amount"] is not None:
        shown["amount"] = written(row["amount"], row["currency"] or "")
    return json.dumps(shown, separators=(",", ":"))


def _text(value: object) -> str | None:
    return None if value is None else clean_text(str(value), _TEXT_MAX)
