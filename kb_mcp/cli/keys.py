"""`kb-mcp keys`, `spend`, `grants`, `operators`: who may do what, and what of it is used.

Floor: the commands. A vault key is printed by issue and rotate alone, once, an operator's token by
add alone, once; the store keeps their hashes.
"""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import click
from msgspec.structs import asdict

from kb_mcp.cli import group
from kb_mcp.cli.opening import OPERATOR, OpenStore, in_store, key_argument, key_ids, roles
from kb_mcp.cli.output import TYPED, Failure, WrongUse, read_by, say_failure
from kb_mcp.instants import day_of, parse_duration, rfc3339
from kb_mcp.money import CURRENCIES, Money, format_money
from kb_mcp.operators.actions import keys as acts
from kb_mcp.operators.actions.grants import NewGrant, add_grant, remove_grant
from kb_mcp.operators.reports.views import key_status
from kb_mcp.proxy.access.policy import Policy, load_policy, missing_caps
from kb_mcp.proxy.access.roles import ROLES, describe
from kb_mcp.proxy.access.tokens import Minted, hash_token
from kb_mcp.proxy.edge.records import Record, Spend, grant_record
from kb_mcp.proxy.ledger.records import KeyId
from kb_mcp.proxy.stores.database import Operator
from kb_mcp.serving.machine import random_bytes

# A revocation waits this long for sends under way; a send ends within the upstream timeout.
REVOKE_WAIT_S = 30
COLUMNS = "id role mode label agent expires_at state last_used_at"
# What may be given once for each currency.
_amount = partial(click.option, metavar="AMOUNT", multiple=True)
keys = group("keys", "issue --role billing --daily-cap 10000.00usd")


@keys.command()
@click.option("--role", shell_complete=roles, help=f"A built-in role: {', '.join(ROLES)}.")
@click.option("--policy", type=click.Path(exists=True, dir_okay=False),
              callback=read_by(lambda file: Path(file).read_text("utf-8")),
              help="A policy of your own, TOML or JSON.")  # fmt: skip
@click.option("--label", help="A note for people.")
@click.option("--agent", help="The agent that will hold it: the audit shows it where a caller "
              "does not say who it is.")  # fmt: skip
@click.option("--expires", "expires_at", help="A time, a duration (30d), or end-of-month.")
@_amount("--per-charge-cap",
         help="The most one charge may be, like 500.00usd; once for each currency.")  # fmt: skip
@_amount("--daily-cap", help="The most in a UTC day.")
@_amount("--monthly-cap", help="The most in a calendar month, UTC.")
@_amount("--per-customer-daily-cap", help="The most for one customer in a day, over all keys.")
@click.option("--daily-charges", metavar="N", help="The most charges in a day.")
@_amount("--per-refund-cap", help="The most one refund may be.")
@_amount("--refund-daily-cap", help="The most that it may refund in a UTC day.")
@_amount("--refund-monthly-cap", help="The most that it may refund in a calendar month, UTC.")
@_amount("--refund-per-customer-daily-cap",
         help="The most refunded to one customer in a day, over all keys.")  # fmt: skip
@click.option("--daily-refunds", metavar="N", help="The most refunds in a day.")
@_amount("--refund-approval-above", help="A refund above this needs an operator's approval.")
@click.option("--rate", help="Requests a minute, like 60/min.")
@_amount("--approval-above",
         help="Charges above this wait for an operator; once for each currency.")  # fmt: skip
@click.option("--uncapped", is_flag=True,
              help="Let it move money without a cap per day, month or customer.")  # fmt: skip
@click.option("--overlaps", metavar="[refuse|allow]",
              help="Whether a bill may share days with one of another period.")  # fmt: skip
@click.option("--period-kinds", metavar="KIND,…",
              help="The only kinds of period it may bill, like month,quarter.")  # fmt: skip
@in_store("keys issue --role billing --daily-cap 10000.00usd --expires end-of-month")
async def issue(opened: OpenStore, **options: Any) -> None:
    """Issue a vault key. Its token is shown once, here.

    The tool `refund` makes one refund of a charge, of all or a part; `operations reopen` of that
    refund allows one more. `max_refunds_per_charge` of a policy is for other programs.
    """
    fields: dict[str, Any] = {"caps": {}, "refund_caps": {}}
    for name, value in options.items():
        if value == ():  # an amount that was not given; an empty one is an error
            continue
        given = ",".join(value) if isinstance(value, tuple) else value
        if name.endswith("_cap"):
            caps = fields["refund_caps" if "refund" in name else "caps"]
            caps[name.removeprefix("refund_").removesuffix("_cap")] = given
        else:
            fields[name] = given
    wanted = acts.read_new_key(fields, opened.views.mode, opened.now())
    try:
        _, minted = await acts.issue_key(opened.store.ledger, wanted, random_bytes, OPERATOR)
    except acts.CapRequiredError as error:
        raise WrongUse(str(error), _with_caps(error.policy)) from None
    await _show_minted(opened, minted)


@keys.command("list")
@in_store("keys list --json")
async def list_(opened: OpenStore) -> None:
    """List every key, oldest first.

    `last_used_at` is when it last asked to move money; reads are in the audit alone.
    """
    now = opened.now()
    found = [_with_state(key, now) for key in await opened.views.keys()]
    empty = "No keys yet: kb-mcp keys issue --role billing --daily-cap 1000.00usd"
    opened.out.list(found, COLUMNS, empty)


@keys.command()
@key_argument
@in_store("keys show abc123def456")
async def show(opened: OpenStore, *, key_id: str) -> None:
    """Show one key and, in plain words, what it may do."""
    record = _with_state(await opened.views.key(key_id), opened.now())
    if opened.out.as_json:
        opened.out.json(record)
        return
    policy = record.pop("policy")
    opened.out.record(record)
    click.echo("\n".join(describe(load_policy(policy))))


@keys.command()
@key_argument
@click.option("--reason", help="Why; kept with the key and in the audit.")
@in_store('keys revoke abc123def456 --reason "laptop lost"')
async def revoke(opened: OpenStore, *, key_id: str, reason: str | None) -> None:
    """Revoke a key now. Waits for sends already under way and says how many there were."""
    ledger, records = opened.store.ledger, opened.store.records
    counts = await acts.revoke_key(
        ledger, records, KeyId(key_id), acts.clean_reason(reason), OPERATOR, REVOKE_WAIT_S
    )
    record = _with_state(await opened.views.key(key_id), opened.now()) | counts
    said = f"Revoked {key_id}. Sends under way when it took effect: {counts['under_way']}."
    opened.out.done(record, said)
    if left := counts["still_under_way"]:
        say_failure(
            f"{left} of them have not ended after {REVOKE_WAIT_S} s",
            "The key sends nothing new; `kb-mcp operations list --state reserved` shows them.",
        )


@keys.command()
@key_argument
@click.option("--reason", required=True, callback=read_by(acts.given_reason),
              help="Why it may serve again; kept in the audit.")  # fmt: skip
@in_store('keys unfreeze abc123def456 --reason "cards were expired, checked"')
async def unfreeze(opened: OpenStore, *, key_id: str, reason: str) -> None:
    """Unfreeze a key that froze after too many declines or a late charge."""
    if (await opened.views.key(key_id))["frozen_at"] is None:
        raise Failure(f"key {key_id} is not frozen")
    await acts.unfreeze_key(opened.store.ledger, KeyId(key_id), reason, OPERATOR)
    record = _with_state(await opened.views.key(key_id), opened.now())
    opened.out.done(record, f"Key {key_id} and its line of successors may charge again.")


@keys.command()
@key_argument
@click.option("--overlap", "overlap_ms", callback=read_by(parse_duration), default="24h",
              help="How long the old key still serves.")  # fmt: skip
@in_store("keys rotate abc123def456 --overlap 1h")
async def rotate(opened: OpenStore, *, key_id: str, overlap_ms: int) -> None:
    """Issue the successor of a key: same policy, same caps in use. Its token is shown once."""
    ledger, old = opened.store.ledger, KeyId(key_id)
    _, minted = await acts.rotate_key(ledger, old, overlap_ms, random_bytes, OPERATOR)
    await _show_minted(opened, minted, replaces=key_id)


def _with_caps(policy: Policy) -> str:
    """Return the line that was typed, with the caps over time that `policy` lacks."""
    # All caps on one kind of act name the same currencies, and so must the ones to add.
    charges = (*policy.caps.tables(), policy.approval_above)
    refunds = (*policy.refund_caps.tables(), policy.refund_approval_above, *charges)
    named = {"--daily-cap": charges, "--refund-daily-cap": refunds}
    missing = [
        f"{option} 1000{'.00' if CURRENCIES[code] == 2 else ''}{code}"
        for option in missing_caps(policy)
        for code in next(filter(None, named[option]), ("usd",))
    ]
    line = f"kb-mcp {shlex.join(click.get_current_context().meta[TYPED])}"
    return f"{line} {' '.join(missing)} (or, to have none: {line} --uncapped)"


def _with_state(key: Record, now: int) -> Record:
    return key | {"state": key_status(key, rfc3339(now))}


async def _show_minted(opened: OpenStore, minted: Minted, replaces: str | None = None) -> None:
    key = await opened.views.key(minted.id)
    if opened.out.as_json:
        front = {"id": key.pop("id"), "token": minted.token}
        opened.out.json(front | key | ({"replaces": replaces} if replaces else {}))
        return
    click.echo(f"Vault key {key['id']} ({key['mode']} mode). Its token is shown this once:")
    click.echo(f"\n  {minted.token}\n")
    click.echo("\n".join(describe(load_policy(key["policy"]))))
    if key["expires_at"]:
        click.echo(f"The key expires at {key['expires_at']}.")


AMOUNTS = ("cap", "settled", "reserved", "left")
SPEND_COLUMNS = f"key_id scope window window_start {' '.join(AMOUNTS)}"


@click.command()
@click.option("--key", "key_id", shell_complete=key_ids, help="Only this key's.")
@click.option("--day", help="Another UTC day than today, like 2026-06-15.")
@in_store("spend --day 2026-06-15")
async def spend(opened: OpenStore, *, key_id: str | None, day: str | None) -> None:
    """Show cap, spend and what is left, per key and window; in JSON in minor units."""
    views = opened.views
    date = day_of(opened.now() if day is None else opened.past_ms(day))
    if key_id is None:
        found = await views.spend(date, rotated=True)
    else:
        found = await views.spend_of(date, key_id)
    shown = found if opened.out.as_json else [_with_currency(each) for each in found]
    opened.out.list(shown, SPEND_COLUMNS, "No caps, and nothing spent.")


def _with_currency(spend: Spend) -> Record:
    record = asdict(spend)
    amounts = {name: record[name] for name in AMOUNTS if record[name] is not None}
    written = {name: format_money(Money(of, spend.currency)) for name, of in amounts.items()}
    return record | written


TOKEN_BYTES = 24
# "admin" is the holder of KEYBRAKE_ADMIN_TOKEN, and "cli" is this command line in the audit.
TAKEN = frozenset({"admin", "cli", "first-run"})
_NAME = re.compile(r"[a-z][a-z0-9._-]{0,31}")
operators = group("operators", "add maria")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text) or text in TAKEN:
        raise ValueError(f"{text!r} is no name: up to 32 of a-z 0-9 . _ -, not reserved")
    return text


@operators.command("add")
@click.argument("name", callback=read_by(_name))
@in_store("operators add maria")
async def operator_add(opened: OpenStore, *, name: str) -> None:
    """Add an operator. The token is shown once, here."""
    taken = Failure(f"there is an operator {name} already", "Remove it first.")
    if name in opened.store_admin.operator_hashes():
        raise taken
    await opened.note("operator_add", name)
    token = f"kbo_{random_bytes(TOKEN_BYTES).hex()}"
    if not opened.store_admin.add_operator(Operator(name, hash_token(token), opened.now())):
        raise taken
    said = f"Operator {name}. The token is shown this once:\n\n  {token}\n"
    opened.out.done({"name": name, "token": token}, said)


@operators.command("list")
@in_store("operators list")
async def operator_list(opened: OpenStore) -> None:
    """List the operators."""
    found = [
        {"name": each.name, "created_at": rfc3339(each.created_at)}
        for each in opened.store_admin.operators()
    ]
    empty = "None but the holder of KEYBRAKE_ADMIN_TOKEN."
    opened.out.list(found, "name created_at", empty)


@operators.command("remove")
@click.argument("name")
@in_store("operators remove maria", json=False)
async def operator_remove(opened: OpenStore, *, name: str) -> None:
    """Remove an operator; the token stops working at once."""
    if name not in opened.store_admin.operator_hashes():
        raise Failure(f"there is no operator {name}", "`kb-mcp operators list` shows them.")
    await opened.note("operator_remove", name)
    opened.store_admin.remove_operator(name)
    click.echo(f"Removed {name}.")


GRANT_COLUMNS = "id issuer match key_id label created_at"
grants = group("grants", "list")


@grants.command("add")
@click.option("--issuer", required=True, help="Who signs the tokens, as `iss` in them writes it.")
@click.option("--match", "matches", multiple=True, required=True,
              help="CLAIM=VALUE, or CLAIM=PREFIX*; all that are given must match.")  # fmt: skip
@click.option("--key", "key_id", required=True, shell_complete=key_ids,
              help="The vault key that these identities stand for.")  # fmt: skip
@click.option("--label", help="A note for people.")
@in_store("grants add --issuer https://idp.example --match sub=agent-7 --key ID")
async def grant_add(
    opened: OpenStore, *, issuer: str, matches: tuple[str, ...], key_id: str, label: str | None
) -> None:
    """Let identities of a provider use a vault key, with its policy and its caps."""
    wanted = NewGrant(issuer, matches, key_id, label)
    grant = await add_grant(opened.store.ledger, wanted, random_bytes, OPERATOR)
    if opened.settings.oauth_issuers and issuer not in opened.settings.oauth_issuers:
        click.echo(f"Note: KEYBRAKE_OAUTH_ISSUERS here does not name {issuer}.", err=True)
    opened.out.record(grant_record(grant))


@grants.command("list")
@in_store("grants list --json")
async def grant_list(opened: OpenStore) -> None:
    """List the grants."""
    empty = "No grants: vault keys alone are accepted."
    opened.out.list(await opened.views.grants(), GRANT_COLUMNS, empty)


@grants.command("remove")
@click.argument("grant_id", metavar="ID")
@in_store("grants remove ID")
async def grant_remove(opened: OpenStore, *, grant_id: str) -> None:
    """Remove a grant now: no host reserves anything by it after this."""
    store = opened.store
    grant, counts = await remove_grant(
        store.ledger, store.records, grant_id, OPERATOR, REVOKE_WAIT_S
    )
    said = f"Removed {grant_id}. Sends of its key under way then: {counts['under_way']}."
    if left := counts["still_under_way"]:
        said += f"\n{left} did not end yet; recovery finds out about them."
    opened.out.done({**grant_record(grant), **counts}, said)
