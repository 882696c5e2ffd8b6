"""`kb-mcp spend`: what each key and the account have used of their caps.

Floor: the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kb_mcp.cli.completion import key_ids
from kb_mcp.cli.failures import Failure
from kb_mcp.cli.opening import OpenStore, with_store
from kb_mcp.cli.output import json_option, print_list

if TYPE_CHECKING:
    from datetime import date

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
    from kb_mcp.operators.reports.spend import refunds_of_every_key, spend_of_every_key

    now = opened.now()
    date = day_of(now if day is None else opened.past_ms(day))
    refunds = await refunds_of_every_key(opened.store.records, date)
    if key_id is not None:
        mine = [each for each in refunds if each.key_id == key_id]
        return [*await _spend_of(opened, key_id, date), *mine]
    rows = await spend_of_every_key(opened.store.records, date, rotated=True)
    return [*await _account(opened, date.isoformat()), *rows, *refunds]


async def _spend_of(opened: OpenStore, key_id: str, day: date) -> list[Spend]:
    from kb_mcp.proxy.edge.records import spend_records
    from kb_mcp.proxy.ledger.records import KeyId

    starts = (day.isoformat(), day.replace(day=1).isoformat())
    found = await opened.store.records.spend_of_keys([KeyId(key_id)], *starts, opened.now())
    if not found:
        raise Failure(f"there is no vault key {key_id}", "`kb-mcp keys list` shows every key.")
    return spend_records(found[0].key_id, found[0].caps, found[0].windows, *starts)


async def _account(opened: OpenStore, today: str) -> list[Spend]:
    from kb_mcp.proxy.edge.records import account_spend
    from kb_mcp.proxy.ledger.records import Window, WindowKey

    ceilings = opened.store.settings.ceilings
    found = await opened.store.records.windows(scope="account", starts=(today,))
    windows = {window.key.currency: window for window in found if window.key.currency}
    for currency in ceilings:
        key = WindowKey("account", "", "day", today, currency)
        windows.setdefault(currency, Window(key))
    return [account_spend(windows[currency], ceilings) for currency in sorted(windows)]
