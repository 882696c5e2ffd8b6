"""`kb-mcp spend`: what each key and the account have used of their caps.

Floor: the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kb_mcp.cli.opening import OpenStore, key_ids, with_store
from kb_mcp.cli.output import json_option, print_list

if TYPE_CHECKING:
    from kb_mcp.proxy.edge.records import Spend

COLUMNS = ("key_id", "scope", "window", "window_start", "currency", "cap", "settled", "reserved",
           "left")  # fmt: skip


@click.command()
@click.option("--key", "key_id", shell_complete=key_ids, help="Only this key's.")
@click.option("--day", help="Another UTC day than today, like 2026-06-15.")
@json_option
def spend(*, key_id: str | None, day: str | None, as_json: bool) -> None:
    """Show cap, spend and what is left, per key and window, in minor units.

    Example: kb-mcp spend --day 2026-06-15
    """
    records = with_store(lambda opened: _spend(opened, key_id, day))
    print_list(records, COLUMNS, as_json=as_json, empty="No caps, and nothing spent.")


async def _spend(opened: OpenStore, key_id: str | None, day: str | None) -> list[Spend]:
    from kb_mcp.instants import day_of

    views = opened.views
    date = day_of(opened.now() if day is None else opened.past_ms(day))
    if key_id is None:
        return await views.spend(date, rotated=True)
    await views.key(key_id)
    return await views.spend_of(date, key_id)
