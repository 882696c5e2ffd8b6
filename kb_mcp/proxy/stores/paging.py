"""Long reads in pages: each page is one short transaction, and none is open between two of them.

Floor: inside the stores. A reader that stalls (a full pipe, a stopped process) would else keep
SQLite from emptying its write-ahead log, and PostgreSQL from clearing away dead rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from kb_mcp.proxy.stores.rows import Row

PAGE_ROWS: Final = 500
Columns = dict[str, Any]


def in_pages(
    page: Callable[[Columns | None, int], Sequence[Row]], limit: int | None = None
) -> Iterator[Columns]:
    """Yield rows of `page`, which takes the last row that was read and how many are wanted.

    `limit` is the most rows in all. Raises: what `page` raises.
    """
    last, left = None, limit
    while left is None or left > 0:
        wanted = PAGE_ROWS if left is None else min(left, PAGE_ROWS)
        rows = [dict(row) for row in page(last, wanted)]
        yield from rows
        if len(rows) < wanted:
            return
        last = rows[-1]
        left = None if left is None else left - wanted
