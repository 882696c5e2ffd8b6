"""`kb-mcp settings` and `migrate`: what a store holds for all processes, and its schema.

Floor: the commands.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kb_mcp.cli import group, opening
from kb_mcp.cli.output import Output, WrongUse, example
from kb_mcp.environment import SQLITE
from kb_mcp.instants import how_many, rfc3339
from kb_mcp.money import MoneyError, parse_caps
from kb_mcp.operators.actions.adoption import confirm_new_store as confirm
from kb_mcp.operators.actions.adoption import name_foreign
from kb_mcp.proxy.ledger.clock import StoredTime
from kb_mcp.proxy.store_walk import LOOK_BACK_AT_START_MS, Whole
from kb_mcp.settings import UPSTREAM_TIMEOUT_MS_MAX, Settings, load_settings
from kb_mcp.wiring.stores import store_path

_CEILINGS = {"account_daily_cap": "ceilings", "account_daily_refund_cap": "refund_ceilings"}
_TAKEN_UP = {
    "account_daily_cap": "It holds for every charge from now on, in every process.",
    "account_daily_refund_cap": "It holds for every refund from now on, in every process.",
    "upstream_timeout": "Processes that are serving take it up when they start again.",
    "recovery_grace": "A longer one holds from now on, a shorter one where a process starts again.",
}
settings = group("settings", "set account_daily_cap 50000.00usd")


@settings.command()
@opening.in_store("settings show --json", opening.leniently)
async def show(opened: opening.OpenStore) -> None:
    """Show what the store holds."""
    opened.out.record(_record(_held(opened)))


def _fact(name: str, value: str) -> tuple[str, str]:
    """Return the fact that setting `name` to `value` writes. Raises: BadParameter."""
    if name in _CEILINGS:
        try:
            return _CEILINGS[name], json.dumps({} if value == "none" else parse_caps(value))
        except MoneyError as error:
            raise click.BadParameter(f"{error} `none` takes the ceiling away.") from None
    if not value.isascii() or not value.isdigit() or not 0 < int(value) <= 86_400:
        raise click.BadParameter(f"{name} is a whole number of seconds, at most a day")
    return f"{name}_ms", str(int(value) * 1000)


@settings.command("set")
@click.argument("name", type=click.Choice(tuple(_TAKEN_UP)))
@click.argument("value")
@opening.in_store(
    "settings set account_daily_cap 50000.00usd,40000.00eur", opening.leniently, check=_fact
)
async def set_(opened: opening.OpenStore, *, name: str, value: str) -> None:
    """Set one setting; VALUE is a cap (or several, or none), or a number of seconds."""
    fact, text = _fact(name, value)
    before = _held(opened)
    _check_times(before | {fact: text})
    # The audit row commits first: no change is without one.
    await opened.note("settings_set", f"{name}: {before[fact]} -> {text}")
    set_at = f"{fact.removesuffix('_ms')}_set_at"
    opened.store_admin.set_facts({fact: text, set_at: str(opened.now())})
    opened.out.record(_record(_held(opened)))
    click.echo(_TAKEN_UP[name], err=True)


def _held(opened: opening.OpenStore) -> dict[str, str]:
    """Return the facts of the store, and what the first serving process would add to them."""
    return opened.store.defaults | opened.store_admin.facts()


@settings.command("confirm-account")
@opening.at_stripe("settings confirm-account", json=False)
async def confirm_account(opened: opening.OpenProxy) -> None:
    """Confirm that the Stripe key of this process belongs to the account of this store.

    It is asked for where the key may read neither its account nor an object that the store made.
    Where Stripe says that it is another account, this is refused.
    """
    if opened.settings.upstream_mode != "sandbox":
        await opened.proxy.account.confirm(opening.OPERATOR)
    click.echo("This Stripe key may be used with the store.")


@settings.command("confirm-new-store")
@opening.at_stripe("settings confirm-new-store", json=False)
async def confirm_new_store(opened: opening.OpenProxy) -> None:
    """Confirm that this store is new; recent charges at Stripe belong to another store.

    A new store sends nothing while Stripe has recent charges that kb-mcp made: it may stand in for
    a store that was lost.
    """
    opening.demand(await confirm(opened.proxy.walks.walk, opening.OPERATOR))
    click.echo("The store is a new one: it sends from now on.")


@settings.command("foreign-lineage")
@click.argument("lineage")
@opening.at_stripe("settings foreign-lineage b7zlpvt5pt7w", json=False)
async def foreign_lineage(opened: opening.OpenProxy, *, lineage: str) -> None:
    """Confirm that charges marked with LINEAGE (by a version before 0.2) are another store's.

    LINEAGE stands in their metadata[keybrake_key] at Stripe.
    """
    walk = opened.proxy.walks.walk
    opening.demand(await name_foreign(walk, lineage, opening.OPERATOR))
    whole = isinstance(await walk.run(LOOK_BACK_AT_START_MS), Whole)
    left = "" if whole else " `kb-mcp doctor` says what is still missing."
    click.echo(f"Charges of {lineage} are another store's.{left}")


@settings.command("confirm-clock")
@opening.in_store("settings confirm-clock", opening.leniently)
async def confirm_clock(opened: opening.OpenStore) -> None:
    """Confirm that this host's clock is right, when it differs from Stripe's or the store's.

    `kb-mcp doctor` says what is disputed. The word holds until the clocks agree again.
    """
    host_ms = opened.store.clock.host_ms()
    stored = StoredTime.of_facts(opened.store_admin.facts())
    before, now = rfc3339(stored.mark), rfc3339(host_ms)
    await opened.note("clock_confirmed", f"clock: {before} -> {now}")
    opened.store_admin.confirm_clock(opened.store.clock.word_of_operator(stored), host_ms)
    opened.out.record({"time": now, "latest_seen_before": before})


def _check_times(facts: Mapping[str, str]) -> None:
    if int(facts["upstream_timeout_ms"]) > UPSTREAM_TIMEOUT_MS_MAX:
        hint = "Set 40 at most: the tools wait 60 seconds for an outcome, Stripe's SDKs 80."
        raise WrongUse("upstream_timeout is more than callers wait", hint)
    if int(facts["upstream_timeout_ms"]) >= int(facts["recovery_grace_ms"]):
        hint = "A void before a send has ended could void a charge under way."
        raise WrongUse("recovery_grace must be well above upstream_timeout", hint)


def _record(facts: Mapping[str, str]) -> dict[str, Any]:
    return {
        "account": facts["account"],
        "mode": facts["mode"],
        "account_daily_cap": json.loads(facts["ceilings"]),
        "account_daily_refund_cap": json.loads(facts.get("refund_ceilings", "{}")),
        "upstream_timeout": int(facts["upstream_timeout_ms"]) // 1000,
        "recovery_grace": int(facts["recovery_grace_ms"]) // 1000,
    }


@click.command()
@click.option("--from", "source", metavar="sqlite:///PATH",
              help="Copy this embedded ledger into the new, empty PostgreSQL store.")  # fmt: skip
@click.option("--grant-to", metavar="ROLE",
              help="PostgreSQL: give this role what a serving process needs.")  # fmt: skip
@example("migrate --grant-to keybrake_proxy")
def migrate(*, source: str | None, grant_to: str | None) -> None:
    """Bring the store to the newest schema."""
    settings = load_settings()
    if settings.database_path is not None:
        if source or grant_to:
            raise click.UsageError("--from and --grant-to are for a PostgreSQL store")
        number = asyncio.run(_schema(settings))
    else:
        store_path(settings)  # which says so if the driver is missing
        from kb_mcp.wiring.stores.postgres import migrate_postgres

        number = migrate_postgres(settings, grant_to)
    click.echo(f"The store has schema {number}, the newest.")
    if source is not None:
        _copy(settings, source)


async def _schema(settings: Settings) -> int:
    async with opening.leniently(settings, Output()) as opened:
        return opened.store_admin.database.schema()


def _copy(settings: Settings, source: str) -> None:
    from kb_mcp.wiring.stores.copying import copy_ledger

    # A shell's path, relative to where the command is started.
    file = Path(source.removeprefix(SQLITE)).expanduser().absolute()
    if not source.startswith(SQLITE) or not file.is_file():
        raise WrongUse(f"there is no ledger at {source}", "Name its file: sqlite:///PATH.")
    with Output().progress("Copying") as advance:
        copied = copy_ledger(settings, file, advance)
    click.echo(
        f"Copied {how_many(copied.rows, 'row')}, {copied.audit_rows} of them of the audit, in "
        f"{how_many(copied.chains, 'chain')}: all read back equal, and every chain verifies."
    )
