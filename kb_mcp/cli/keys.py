"""`kb-mcp keys` and `spend`: vault keys, issued, shown, rotated, revoked, and their caps in use.

Floor: the commands. The only commands that print a vault key are issue and rotate, once.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from typing_extensions import override

from kb_mcp.cli.opening import OPERATOR, OpenStore, in_store, key_ids, roles, with_store
from kb_mcp.cli.output import (
    WRONG,
    Failure,
    json_option,
    print_done,
    print_json,
    print_list,
    print_record,
    say_failure,
)
from kb_mcp.instants import day_of, parse_duration, rfc3339

if TYPE_CHECKING:
    from kb_mcp.proxy.access.policy import Policy
    from kb_mcp.proxy.access.tokens import Minted, Mode
    from kb_mcp.proxy.edge.records import Spend
    from kb_mcp.proxy.ledger.records import Lineage, VaultKey

F = TypeVar("F", bound=Callable[..., Any])
# A revocation waits this long for sends under way; a send ends within the upstream timeout.
REVOKE_WAIT_S = 30
POLICY_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
COLUMNS = ("id", "role", "mode", "label", "agent", "expires_at", "state", "last_used_at")


@click.group()
def keys() -> None:
    """Vault keys: what an agent holds instead of a Stripe key.

    Example: kb-mcp keys issue --role billing --daily-cap 10000.00usd
    """


def _cap_option(flag: str, name: str, help_text: str) -> Callable[[F], F]:
    return click.option(flag, name, metavar="AMOUNT", multiple=True, help=help_text)


class RoleOption(click.Option):
    """The option that lists the built-in roles, which take too long to load for other commands."""

    @override
    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the names of the option, and what it takes."""
        from kb_mcp.proxy.access.roles import ROLES

        self.help = f"A built-in role: {', '.join(ROLES)}."
        return super().get_help_record(ctx)


@keys.command()
@click.option("--role", cls=RoleOption, shell_complete=roles)
@click.option("--policy", "policy_file", type=POLICY_FILE,
              help="A policy of your own, TOML or JSON.")  # fmt: skip
@click.option("--label", help="A note for people.")
@click.option("--agent", help="The agent that will hold it: the audit shows it where a caller "
              "does not say who it is.")  # fmt: skip
@click.option("--expires", help="A time, a duration (30d), or end-of-month.")
@_cap_option("--per-charge-cap", "per_charge",
             "The most one charge may be, like 500.00usd; once for each currency.")  # fmt: skip
@_cap_option("--daily-cap", "daily", "The most in a UTC day.")
@_cap_option("--monthly-cap", "monthly", "The most in a calendar month, UTC.")
@_cap_option("--per-customer-daily-cap", "per_customer_daily",
             "The most for one customer in a day, over all keys.")  # fmt: skip
@click.option("--daily-charges", metavar="N", help="The most charges in a day.")
@_cap_option("--per-refund-cap", "refund_per_refund", "The most one refund may be.")
@_cap_option("--refund-daily-cap", "refund_daily", "The most that it may refund in a UTC day.")
@_cap_option("--refund-monthly-cap", "refund_monthly",
             "The most that it may refund in a calendar month, UTC.")  # fmt: skip
@_cap_option("--refund-per-customer-daily-cap", "refund_per_customer_daily",
             "The most refunded to one customer in a day, over all keys.")  # fmt: skip
@click.option("--daily-refunds", metavar="N", help="The most refunds in a day.")
@_cap_option("--refund-approval-above", "refund_approval_above",
             "A refund above this needs an operator's approval.")  # fmt: skip
@click.option("--rate", help="Requests a minute, like 60/min.")
@_cap_option("--approval-above", "approval_above",
             "Charges above this wait for an operator; once for each currency.")  # fmt: skip
@click.option("--uncapped", is_flag=True,
              help="Let it move money without a cap per day, month or customer.")  # fmt: skip
@click.option("--overlaps", metavar="[refuse|allow]",
              help="Whether a bill may share days with one of another period.")  # fmt: skip
@click.option("--period-kinds", metavar="KIND,…",
              help="The only kinds of period it may bill, like month,quarter.")  # fmt: skip
@json_option
def issue(
    *,
    policy_file: Path | None,
    expires: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Issue a vault key. Its token is shown once, here.

    The tool `refund` makes one refund of a charge, of all or a part; `operations reopen` of that
    refund allows one more. `max_refunds_per_charge` of a policy is for other programs.

    Example: kb-mcp keys issue --role billing --daily-cap 10000.00usd --expires end-of-month
    """
    from kb_mcp.proxy.access.policy import CAP_KINDS, RefundCapRules

    typed = _typed(click.get_current_context())
    # What may be given once for each currency arrives as a tuple.
    said = {name: ",".join(each) if isinstance(each, tuple) else each
            for name, each in options.items() if each not in (None, ())}  # fmt: skip
    refunds = {f"refund_{name}": name for name in RefundCapRules.model_fields}
    fields = {name: text for name, text in said.items() if name not in {*CAP_KINDS, *refunds}}
    fields["caps"] = {name: said[name] for name in CAP_KINDS if name in said}
    fields["refund_caps"] = {name: said[of] for of, name in refunds.items() if of in said}
    fields["expires_at"] = expires
    fields["policy"] = None if policy_file is None else _text_of(policy_file)

    async def work(opened: OpenStore) -> tuple[VaultKey, Minted]:
        from kb_mcp.operators.actions.keys import CapRequiredError, issue_key, read_new_key
        from kb_mcp.serving.machine import random_bytes

        mode: Mode = "live" if opened.store.settings.mode == "live" else "test"
        wanted = read_new_key(fields, mode, opened.now())
        try:
            return await issue_key(opened.store.ledger, wanted, random_bytes, OPERATOR)
        except CapRequiredError as error:
            raise Failure(str(error), _with_caps(error.policy, typed), WRONG) from None

    _print_minted(*with_store(work), as_json=as_json)


@keys.command("list")
@json_option
@in_store
async def list_(opened: OpenStore, *, as_json: bool) -> None:
    """List every key, oldest first.

    `last_used_at` is when it last asked to move money; reads are in the audit alone.

    Example: kb-mcp keys list --json
    """
    now = opened.now()
    found = [_record(*each, now) for each in await opened.store.records.keys()]
    empty = "No keys yet: kb-mcp keys issue --role billing --daily-cap 1000.00usd"
    print_list(found, COLUMNS, as_json=as_json, empty=empty)


@keys.command()
@click.argument("key_id", metavar="ID", shell_complete=key_ids)
@json_option
@in_store
async def show(opened: OpenStore, *, key_id: str, as_json: bool) -> None:
    """Show one key and, in plain words, what it may do.

    Example: kb-mcp keys show abc123def456
    """
    from kb_mcp.proxy.access.authenticate import policy_of
    from kb_mcp.proxy.access.roles import describe

    key, lineage = await _find(opened, key_id)
    record, words = _record(key, lineage, opened.now()), describe(policy_of(key.policy))
    if as_json:
        print_json(record)
        return
    print_record({name: value for name, value in record.items() if name != "policy"}, as_json=False)
    for line in words:
        click.echo(line)


@keys.command()
@click.argument("key_id", metavar="ID", shell_complete=key_ids)
@click.option("--reason", help="Why; kept with the key and in the audit.")
@json_option
@in_store
async def revoke(opened: OpenStore, *, key_id: str, reason: str | None, as_json: bool) -> None:
    """Revoke a key now. Waits for sends already under way and says how many there were.

    Example: kb-mcp keys revoke abc123def456 --reason "laptop lost"
    """
    from kb_mcp.operators.actions.keys import clean_reason, revoke_key

    key, lineage = await _find(opened, key_id)
    store = opened.store
    done = await revoke_key(
        store.ledger, store.records, key.id, clean_reason(reason), OPERATOR, REVOKE_WAIT_S
    )
    record = _record(done.key, lineage, opened.now())
    record = record | {"under_way": done.under_way, "still_under_way": done.still_under_way}
    said = f"Revoked {key_id}. Sends under way when it took effect: {record['under_way']}."
    print_done(record, said, as_json=as_json)
    left = record["still_under_way"]
    if left:
        say_failure(
            f"{left} of them have not ended after {REVOKE_WAIT_S} s",
            "The key sends nothing new; `kb-mcp operations list --state reserved` shows them.",
        )


@keys.command()
@click.argument("key_id", metavar="ID", shell_complete=key_ids)
@click.option("--reason", required=True, help="Why it may serve again; kept in the audit.")
@json_option
@in_store
async def unfreeze(opened: OpenStore, *, key_id: str, reason: str, as_json: bool) -> None:
    """Unfreeze a key that froze after too many declines or a late charge.

    Example: kb-mcp keys unfreeze abc123def456 --reason "cards were expired, checked"
    """
    from kb_mcp.operators.actions.keys import clean_reason, unfreeze_key

    key, lineage = await _find(opened, key_id)
    if lineage.frozen_at is None:
        raise Failure(f"key {key_id} is not frozen")
    why = clean_reason(reason)
    if why is None:
        raise click.BadParameter("Say why the key is unfrozen.", param_hint="--reason")
    unfrozen = await unfreeze_key(opened.store.ledger, key.id, why, OPERATOR)
    said = f"Key {key_id} and its line of successors may charge again."
    print_done(_record(key, unfrozen, opened.now()), said, as_json=as_json)


@keys.command()
@click.argument("key_id", metavar="ID", shell_complete=key_ids)
@click.option("--overlap", default="24h", show_default=True,
              help="How long the old key still serves.")  # fmt: skip
@json_option
def rotate(*, key_id: str, overlap: str, as_json: bool) -> None:
    """Issue the successor of a key: same policy, same caps in use. Its token is shown once.

    Example: kb-mcp keys rotate abc123def456 --overlap 1h
    """
    try:
        overlap_ms = parse_duration(overlap)
    except ValueError as error:
        raise click.BadParameter(f"overlap: {error}") from None

    async def work(opened: OpenStore) -> tuple[VaultKey, Minted]:
        from kb_mcp.operators.actions.keys import rotate_key
        from kb_mcp.serving.machine import random_bytes

        key, _ = await _find(opened, key_id)
        return await rotate_key(opened.store.ledger, key.id, overlap_ms, random_bytes, OPERATOR)

    _print_minted(*with_store(work), as_json=as_json, replaces=key_id)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"cannot read {file}: {error}", None, WRONG) from None


def _typed(context: click.Context) -> list[str]:
    """Return the options that were typed, in the order of the help."""
    words: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if value is True:
            words.append(option.opts[0])
            continue
        for each in value if isinstance(value, tuple) else (value,):
            words += (option.opts[0], str(each))
    return words


def _with_caps(policy: Policy, typed: list[str]) -> str:
    """Return the line that was typed, with the caps over time that `policy` lacks."""
    from kb_mcp.money import CURRENCIES
    from kb_mcp.proxy.access.policy import missing_caps

    # All caps on one kind of act name the same currencies, and so must the ones to add.
    charges = (*policy.caps.tables(), policy.approval_above)
    named = {
        "--daily-cap": charges,
        "--refund-daily-cap": (
            *policy.refund_caps.tables(), policy.refund_approval_above, *charges,
        ),
    }  # fmt: skip
    missing = [
        f"{option} 1000{'.00' if CURRENCIES[code] == 2 else ''}{code}"
        for option in missing_caps(policy)
        for code in next(filter(None, named[option]), ("usd",))
    ]
    line = f"kb-mcp keys issue {shlex.join(typed)}"
    return f"{line} {' '.join(missing)} (or, to have none: {line} --uncapped)"


async def _find(opened: OpenStore, key_id: str) -> tuple[VaultKey, Lineage]:
    from kb_mcp.operators.reports.views import NoSuchKeyError
    from kb_mcp.proxy.ledger.records import KeyId

    found = await opened.store.ledger.find_key(KeyId(key_id))
    if found is None:
        raise NoSuchKeyError(key_id)
    return found


def _record(key: VaultKey, lineage: Lineage, now: int) -> dict[str, Any]:
    from kb_mcp.operators.reports.views import key_status
    from kb_mcp.proxy.access.authenticate import policy_of
    from kb_mcp.proxy.edge.records import key_record

    record = key_record(key, lineage, policy_of(key.policy))
    return record | {"state": key_status(record, rfc3339(now))}


def _print_minted(
    key: VaultKey,
    minted: Minted,
    *,
    as_json: bool,
    replaces: str | None = None,
) -> None:
    from kb_mcp.proxy.access.authenticate import policy_of
    from kb_mcp.proxy.access.roles import describe
    from kb_mcp.proxy.edge.records import key_record
    from kb_mcp.proxy.ledger.records import Lineage

    policy = policy_of(key.policy)
    record = key_record(key, Lineage(key.lineage_id), policy)
    if as_json:
        front = {"id": record.pop("id"), "token": minted.token}
        print_json(front | record | ({"replaces": replaces} if replaces else {}))
        return
    click.echo(f"Vault key {key.id} ({key.mode} mode). Its token is shown this once:")
    click.echo(f"\n  {minted.token}\n")
    for line in describe(policy):
        click.echo(line)
    if record["expires_at"]:
        click.echo(f"The key expires at {record['expires_at']}.")


AMOUNTS = ("cap", "settled", "reserved", "left")
SPEND_COLUMNS = ("key_id", "scope", "window", "window_start", *AMOUNTS)


@click.command()
@click.option("--key", "key_id", shell_complete=key_ids, help="Only this key's.")
@click.option("--day", help="Another UTC day than today, like 2026-06-15.")
@json_option
def spend(*, key_id: str | None, day: str | None, as_json: bool) -> None:
    """Show cap, spend and what is left, per key and window; in JSON in minor units.

    Example: kb-mcp spend --day 2026-06-15
    """
    records = with_store(lambda opened: _spend(opened, key_id, day))
    shown = records if as_json else [_with_currency(each) for each in records]
    print_list(shown, SPEND_COLUMNS, as_json=as_json, empty="No caps, and nothing spent.")


def _with_currency(spend: Spend) -> dict[str, Any]:
    from msgspec.structs import asdict

    from kb_mcp.money import Money, format_money

    record = asdict(spend)
    amounts = {name: record[name] for name in AMOUNTS if record[name] is not None}
    written = {name: format_money(Money(of, spend.currency)) for name, of in amounts.items()}
    return record | written


async def _spend(opened: OpenStore, key_id: str | None, day: str | None) -> list[Spend]:
    views = opened.views
    date = day_of(opened.now() if day is None else opened.past_ms(day))
    if key_id is None:
        return await views.spend(date, rotated=True)
    return await views.spend_of(date, key_id)
