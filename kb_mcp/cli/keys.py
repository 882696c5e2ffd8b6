"""`kb-mcp keys`: vault keys, issued, shown, rotated, revoked.

Floor: the commands. The only commands that print a vault key are issue and rotate, once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from kb_mcp.cli.completion import key_ids, roles
from kb_mcp.cli.failures import WRONG, Failure, say_failure
from kb_mcp.cli.opening import OPERATOR, OpenStore, with_store
from kb_mcp.cli.options import CAP, KINDS, cap_table, duration_ms, future_ms
from kb_mcp.cli.output import json_option, print_json, print_list, print_record

if TYPE_CHECKING:
    from kb_mcp.money import Money
    from kb_mcp.proxy.access.policy import Policy
    from kb_mcp.proxy.access.tokens import Minted
    from kb_mcp.proxy.ledger.records import KeyId, Lineage, VaultKey

F = TypeVar("F", bound=Callable[..., Any])
# A revocation waits this long for sends under way; a send ends within the upstream timeout.
REVOKE_WAIT_S = 30
POLICY_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
CAP_KINDS = ("per_charge", "daily", "monthly", "per_customer_daily")
COLUMNS = ("id", "role", "mode", "label", "agent", "expires_at", "state", "last_used_at")


@click.group()
def keys() -> None:
    """Vault keys: what an agent holds instead of a Stripe key.

    Example: kb-mcp keys issue --role billing --daily-cap 10000.00usd
    """


def _cap_option(kind: str, help_text: str) -> Callable[[F], F]:
    flag = f"--{kind.replace('_', '-')}-cap"
    return click.option(flag, kind, type=CAP, multiple=True, help=help_text)


@keys.command()
@click.option("--role", shell_complete=roles, help="A built-in role: billing, audit, refunds, …")
@click.option("--policy", "policy_file", type=POLICY_FILE,
              help="A policy of your own, TOML or JSON.")  # fmt: skip
@click.option("--label", help="A note for people.")
@click.option("--agent", help="The agent that will hold it; shown in the audit.")
@click.option("--expires", help="A time, a duration (30d), or end-of-month.")
@_cap_option("per_charge", "The most one charge may be, like 500.00usd; once for each currency.")
@_cap_option("daily", "The most in a UTC day.")
@_cap_option("monthly", "The most in a calendar month, UTC.")
@_cap_option("per_customer_daily", "The most for one customer in a day, over all keys.")
@click.option("--daily-charges", type=click.IntRange(min=1), help="The most charges in a day.")
@click.option("--refund-daily-cap", "refund_daily", type=CAP, multiple=True,
              help="The most that it may give back in a UTC day.")  # fmt: skip
@click.option("--refund-approval-above", "refund_above", type=CAP, multiple=True,
              help="A refund above this needs an operator's approval.")  # fmt: skip
@click.option("--rate", help="Requests a minute, like 60/min.")
@click.option("--approval-above", "approval_above", type=CAP, multiple=True,
              help="Charges above this wait for an operator; once for each currency.")  # fmt: skip
@click.option("--uncapped", is_flag=True,
              help="Let it move money without a cap per day, month or customer.")  # fmt: skip
@click.option(
    "--overlaps",
    type=click.Choice(("refuse", "allow")),
    help="Whether a bill may share days with one of another period.",
)
@click.option(
    "--period-kinds", type=KINDS, help="The only kinds of period it may bill, like month,quarter."
)
@json_option
def issue(  # noqa: PLR0913 an option each
    *,
    role: str | None,
    policy_file: Path | None,
    label: str | None,
    agent: str | None,
    expires: str | None,
    daily_charges: int | None,
    refund_daily: tuple[Money, ...],
    refund_above: tuple[Money, ...],
    rate: str | None,
    approval_above: tuple[Money, ...],
    uncapped: bool,
    overlaps: str | None,
    period_kinds: list[str] | None,
    as_json: bool,
    **caps: tuple[Money, ...],
) -> None:
    """Issue a vault key. Its token is shown once, here.

    Example: kb-mcp keys issue --role billing --daily-cap 10000.00usd --expires end-of-month
    """
    changes: dict[str, Any] = {
        "caps": {kind: cap_table(caps[kind], kind) for kind in CAP_KINDS if caps[kind]},
        "refund_caps": {"daily": cap_table(refund_daily, "refund_daily")} if refund_daily else {},
        "refund_approval_above": cap_table(refund_above, "refund_approval_above"),
        "daily_charges": daily_charges,
        "rate": rate,
        "approval_above": cap_table(approval_above, "--approval-above"),
        "overlaps": overlaps,
        "period_kinds": period_kinds,
    }
    policy = _policy(role, policy_file, changes)
    if not uncapped:
        _check_capped(policy, ("--role", role) if role else ("--policy", str(policy_file)))

    async def work(opened: OpenStore) -> tuple[VaultKey, Minted]:
        from kb_mcp.operators.actions.keys import Wanted, issue_key
        from kb_mcp.serving.machine import random_bytes

        wanted = Wanted(
            policy=policy,
            mode="live" if opened.store.settings.mode == "live" else "test",
            label=_cleaned(label),
            agent=_cleaned(agent),
            expires_at=_expiry(expires, policy, opened.now()),
            uncapped=uncapped,
        )
        return await issue_key(opened.store.ledger, wanted, random_bytes, OPERATOR)

    key, minted = with_store(work)
    _print_minted(key, minted, policy, as_json=as_json)


@keys.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """List every key, oldest first.

    Example: kb-mcp keys list --json
    """

    async def work(opened: OpenStore) -> list[dict[str, Any]]:
        now = opened.now()
        return [_record(*each, now) for each in await opened.store.records.keys()]

    empty = "No keys yet: kb-mcp keys issue --role billing --daily-cap 1000.00usd"
    print_list(with_store(work), COLUMNS, as_json=as_json, empty=empty)


@keys.command()
@click.argument("key_id", metavar="ID", shell_complete=key_ids)
@json_option
def show(*, key_id: str, as_json: bool) -> None:
    """Show one key and, in plain words, what it may do.

    Example: kb-mcp keys show abc123def456
    """

    async def work(opened: OpenStore) -> tuple[dict[str, Any], list[str]]:
        from kb_mcp.proxy.access.authenticate import policy_of
        from kb_mcp.proxy.access.roles import describe

        key, lineage = await _find(opened, key_id)
        return _record(key, lineage, opened.now()), describe(policy_of(key.policy))

    record, words = with_store(work)
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
def revoke(*, key_id: str, reason: str | None, as_json: bool) -> None:
    """Revoke a key now. Waits for sends already under way and says how many there were.

    Example: kb-mcp keys revoke abc123def456 --reason "laptop lost"
    """

    async def work(opened: OpenStore) -> dict[str, Any]:
        from kb_mcp.operators.actions.keys import revoke_key

        key, lineage = await _find(opened, key_id)
        store = opened.store
        done = await revoke_key(
            store.ledger, store.records, key.id, _cleaned(reason), OPERATOR, REVOKE_WAIT_S
        )
        record = _record(done.key, lineage, opened.now())
        return record | {"under_way": done.under_way, "still_under_way": done.still_under_way}

    record = with_store(work)
    if as_json:
        print_json(record)
    else:
        click.echo(f"Revoked {key_id}. Sends under way when it took effect: {record['under_way']}.")
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
def unfreeze(*, key_id: str, reason: str, as_json: bool) -> None:
    """Thaw a key that froze after too many declines or a late charge.

    Example: kb-mcp keys unfreeze abc123def456 --reason "cards were expired, checked"
    """

    async def work(opened: OpenStore) -> dict[str, Any]:
        from kb_mcp.operators.actions.keys import unfreeze_key

        key, lineage = await _find(opened, key_id)
        if lineage.frozen_at is None:
            raise Failure(f"key {key_id} is not frozen")
        thawed = await unfreeze_key(opened.store.ledger, key.id, _cleaned(reason) or "", OPERATOR)
        return _record(key, thawed, opened.now())

    record = with_store(work)
    if as_json:
        print_json(record)
    else:
        click.echo(f"Key {key_id} and its line of successors may charge again.")


@keys.command()
@click.argument("key_id", metavar="ID", shell_complete=key_ids)
@click.option("--overlap", default="24h", show_default=True,
              help="How long the old key still serves.")  # fmt: skip
@json_option
def rotate(*, key_id: str, overlap: str, as_json: bool) -> None:
    """Issue the successor of a key: same policy, same caps in use. Its token is shown once.

    Example: kb-mcp keys rotate abc123def456 --overlap 1h
    """
    overlap_ms = duration_ms(overlap)

    async def work(opened: OpenStore) -> tuple[VaultKey, Minted]:
        from kb_mcp.operators.actions.keys import rotate_key
        from kb_mcp.serving.machine import random_bytes

        key, _ = await _find(opened, key_id)
        if key.revoked_at is not None:
            raise Failure(f"key {key_id} is revoked", "Issue a new one: kb-mcp keys issue")
        if key.rotated_to is not None:
            raise Failure(
                f"key {key_id} was rotated to {key.rotated_to}", "Rotate that one instead."
            )
        return await rotate_key(opened.store.ledger, key.id, overlap_ms, random_bytes, OPERATOR)

    from kb_mcp.proxy.access.authenticate import policy_of

    key, minted = with_store(work)
    _print_minted(key, minted, policy_of(key.policy), as_json=as_json, replaces=key_id)


def _policy(role: str | None, file: Path | None, changes: dict[str, Any]) -> Policy:
    """Return the policy that was asked for, checked as a whole. Raises: Failure, UsageError."""
    from kb_mcp.proxy.access.policy_files import PolicyError, dump_policy, load_policy, parse_policy
    from kb_mcp.proxy.access.roles import built_in

    if (role is None) == (file is None):
        raise click.UsageError("give either --role or --policy")
    try:
        if file is not None:
            syntax: Literal["json", "toml"] = "json" if file.suffix.lower() == ".json" else "toml"
            base = parse_policy(file.read_text(encoding="utf-8"), syntax)
        else:
            base = built_in(role or "")
        data = json.loads(dump_policy(base))
        for caps in ("caps", "refund_caps"):
            data[caps] = data.get(caps, {}) | changes.pop(caps)
        data |= {name: value for name, value in changes.items() if value}
        return load_policy(data)
    except KeyError as error:
        raise Failure(
            str(error.args[0]), "Or write a policy of your own: --policy FILE", WRONG
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"cannot read {file}: {error}", None, WRONG) from None
    except PolicyError as error:
        place = f"{file}: " if file is not None else ""
        raise Failure(
            _lines(place, error.errors), "docs/policies.md has every field.", WRONG
        ) from None


def _check_capped(policy: Policy, what: tuple[str, str]) -> None:
    """Check that a cap over time holds what `policy` moves. Raises: Failure."""
    from kb_mcp.money import CURRENCIES
    from kb_mcp.proxy.access.uncapped import missing_caps

    missing = missing_caps(policy)
    if not missing:
        return
    line = f"kb-mcp keys issue {' '.join(what)}"
    currency = next(iter((*policy.caps.per_charge, *policy.approval_above, "usd")))
    amount = f"1000.00{currency}" if CURRENCIES[currency] == 2 else f"1000{currency}"
    caps = " ".join(f"{option} {amount}" for option in missing)
    raise Failure(
        f"a key of role {policy.role} moves money, and no cap per day, month or customer holds it",
        f"{line} {caps} (or, to have none: {line} --uncapped)",
        WRONG,
    )


def _lines(place: str, errors: Iterable[str]) -> str:
    return "; ".join(f"{place}{error}" for error in errors)


def _expiry(text: str | None, policy: Policy, now: int) -> int | None:
    """Return the earlier of what was asked for and what the policy says, in ms UTC."""
    ends = [] if text is None else [future_ms(text, now)]
    if policy.expires_at is not None:
        ends.append(future_ms(policy.expires_at.isoformat(), now))
    return min(ends, default=None)


async def _find(opened: OpenStore, key_id: str) -> tuple[VaultKey, Lineage]:
    from kb_mcp.operators.actions.keys import NoSuchKeyError
    from kb_mcp.proxy.ledger.records import KeyId

    found = await opened.store.ledger.find_key(KeyId(key_id))
    if found is None:
        raise NoSuchKeyError(f"there is no vault key {key_id}")
    return found


def _record(key: VaultKey, lineage: Lineage, now: int) -> dict[str, Any]:
    from kb_mcp.proxy.access.authenticate import policy_of
    from kb_mcp.proxy.edge.records import key_record

    record = key_record(key, lineage, policy_of(key.policy))
    return record | {"state": _state(key, lineage, now)}


def _state(key: VaultKey, lineage: Lineage, now: int) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= now:
        return "expired"
    return "active" if lineage.frozen_at is None else "frozen"


def _print_minted(
    key: VaultKey,
    minted: Minted,
    policy: Policy,
    *,
    as_json: bool,
    replaces: KeyId | str | None = None,
) -> None:
    from kb_mcp.proxy.access.roles import describe
    from kb_mcp.proxy.edge.records import key_record
    from kb_mcp.proxy.ledger.records import Lineage

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


def _cleaned(text: str | None) -> str | None:
    from kb_mcp.proxy.audit.chain import clean_text

    return None if text is None else clean_text(text, 200)
