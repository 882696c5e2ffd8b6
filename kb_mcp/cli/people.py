"""`kb-mcp operators`, `grants`, `approvals`: who decides, whose key an identity has, and a yes.

Floor: the commands. An operator's token is printed by add alone, once; the store keeps its hash.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import click

from kb_mcp.cli.keys import REVOKE_WAIT_S
from kb_mcp.cli.opening import OPERATOR, OpenStore, in_store, key_ids, with_store
from kb_mcp.cli.output import Failure, json_option, print_done, print_list, print_record
from kb_mcp.instants import rfc3339

TOKEN_BYTES = 24
# "admin" is the holder of KEYBRAKE_ADMIN_TOKEN, and "cli" is this command line in the audit.
TAKEN = frozenset({"admin", "cli", "first-run"})
_NAME = re.compile(r"[a-z][a-z0-9._-]{0,31}")


@click.group()
def operators() -> None:
    """People who may use the dashboard and the admin API; the audit names them.

    Example: kb-mcp operators add maria
    """


@operators.command("add")
@click.argument("name")
@json_option
def operator_add(*, name: str, as_json: bool) -> None:
    """Add an operator. The token is shown once, here.

    Example: kb-mcp operators add maria
    """
    if not _NAME.fullmatch(name) or name in TAKEN:
        raise click.BadParameter(f"{name!r} is no name: up to 32 of a-z 0-9 . _ -, not reserved")

    async def work(opened: OpenStore) -> str:
        from kb_mcp.proxy.access.tokens import hash_token
        from kb_mcp.proxy.stores.admin import Operator
        from kb_mcp.serving.machine import random_bytes

        if name in opened.store_admin.operator_hashes():
            raise Failure(f"there is an operator {name} already", "Remove it first.")
        await opened.note("operator_add", name)
        token = f"kbo_{random_bytes(TOKEN_BYTES).hex()}"
        if not opened.store_admin.add_operator(Operator(name, hash_token(token), opened.now())):
            raise Failure(f"there is an operator {name} already", "Remove it first.")
        return token

    token = with_store(work)
    said = f"Operator {name}. The token is shown this once:\n\n  {token}\n"
    print_done({"name": name, "token": token}, said, as_json=as_json)


@operators.command("list")
@json_option
@in_store
async def operator_list(opened: OpenStore, *, as_json: bool) -> None:
    """List the operators.

    Example: kb-mcp operators list
    """
    found = [
        {"name": each.name, "created_at": rfc3339(each.created_at)}
        for each in opened.store_admin.operators()
    ]
    empty = "None but the holder of KEYBRAKE_ADMIN_TOKEN."
    print_list(found, ("name", "created_at"), as_json=as_json, empty=empty)


@operators.command("remove")
@click.argument("name")
@in_store
async def operator_remove(opened: OpenStore, *, name: str) -> None:
    """Remove an operator; the token stops working at once.

    Example: kb-mcp operators remove maria
    """
    if name not in opened.store_admin.operator_hashes():
        raise Failure(f"there is no operator {name}", "`kb-mcp operators list` shows them.")
    await opened.note("operator_remove", name)
    opened.store_admin.remove_operator(name)
    click.echo(f"Removed {name}.")


GRANT_COLUMNS = ("id", "issuer", "match", "key_id", "label", "created_at")


@click.group()
def grants() -> None:
    """Which identities of a provider may use which vault key.

    Example: kb-mcp grants list
    """


@grants.command("add")
@click.option("--issuer", required=True, help="Who signs the tokens, as `iss` in them writes it.")
@click.option("--match", "matches", multiple=True, required=True,
              help="CLAIM=VALUE, or CLAIM=PREFIX*; all that are given must match.")  # fmt: skip
@click.option("--key", "key_id", required=True, shell_complete=key_ids,
              help="The vault key that these identities stand for.")  # fmt: skip
@click.option("--label", help="A note for people.")
@json_option
@in_store
async def grant_add(
    opened: OpenStore,
    *,
    issuer: str,
    matches: tuple[str, ...],
    key_id: str,
    label: str | None,
    as_json: bool,
) -> None:
    """Let identities of a provider use a vault key, with its policy and its caps.

    Example: kb-mcp grants add --issuer https://idp.example --match sub=agent-7 --key ID
    """
    from kb_mcp.operators.actions.grants import NewGrant, NotGrantedError, add_grant
    from kb_mcp.proxy.access.grants import MatchError
    from kb_mcp.proxy.edge.records import grant_record
    from kb_mcp.serving.machine import random_bytes

    wanted = NewGrant(issuer, matches, key_id, label)
    try:
        grant = await add_grant(opened.store.ledger, wanted, random_bytes, OPERATOR)
    except MatchError as error:
        raise click.BadParameter(f"{error}.") from None
    except NotGrantedError as error:
        raise Failure(str(error), "`kb-mcp grants list` and `keys list` show them.") from None
    if opened.settings.oauth_issuers and issuer not in opened.settings.oauth_issuers:
        click.echo(f"Note: KEYBRAKE_OAUTH_ISSUERS here does not name {issuer}.", err=True)
    print_record(grant_record(grant), as_json=as_json)


@grants.command("list")
@json_option
@in_store
async def grant_list(opened: OpenStore, *, as_json: bool) -> None:
    """List the grants.

    Example: kb-mcp grants list --json
    """
    from kb_mcp.proxy.edge.records import grant_record

    every = await opened.store.records.grants()
    found = [grant_record(each) for each in every if each.removed_at is None]
    empty = "No grants: vault keys alone are accepted."
    print_list(found, GRANT_COLUMNS, as_json=as_json, empty=empty)


@grants.command("remove")
@click.argument("grant_id", metavar="ID")
@json_option
@in_store
async def grant_remove(opened: OpenStore, *, grant_id: str, as_json: bool) -> None:
    """Remove a grant now: no host reserves anything by it after this.

    Example: kb-mcp grants remove ID
    """
    from kb_mcp.operators.actions.grants import NoSuchGrantError, remove_grant
    from kb_mcp.proxy.edge.records import grant_record

    store = opened.store
    try:
        removed = await remove_grant(store.ledger, store.records, grant_id, OPERATOR, REVOKE_WAIT_S)
    except NoSuchGrantError as error:
        raise Failure(str(error), "`kb-mcp grants list` shows them.") from None
    counts = {"under_way": removed.under_way, "still_under_way": removed.still_under_way}
    done = {**grant_record(removed.grant), **counts}
    said = f"Removed {grant_id}. Sends of its key under way then: {done['under_way']}."
    if left := done["still_under_way"]:
        said += f"\n{left} did not end yet; recovery finds out about them."
    print_done(done, said, as_json=as_json)


APPROVAL_COLUMNS = ("id", "state", "endpoint", "customer_id", "billing_period", "reference",
                    "charge_id", "invoice_id", "amount", "currency", "payment_method", "key_id",
                    "expires_at", "blocked_by")  # fmt: skip


@click.group()
def approvals() -> None:
    """Charges and refunds that wait for an operator.

    Example: kb-mcp approvals list
    """


@approvals.command("list")
@click.option("--state", type=click.Choice(["pending", "approved", "denied", "used", "expired"]),
              help="Only those in this state.")  # fmt: skip
@json_option
@in_store
async def approval_list(opened: OpenStore, *, state: str | None, as_json: bool) -> None:
    """List approvals, newest first.

    Example: kb-mcp approvals list --state pending
    """
    print_list(
        await opened.views.approvals(state=state),
        APPROVAL_COLUMNS,
        as_json=as_json,
        empty="Nothing waits for approval.",
    )


@approvals.command()
@click.argument("approval_id", metavar="ID")
@json_option
def approve(*, approval_id: str, as_json: bool) -> None:
    """Approve one charge or refund, once: the agent's next identical call goes through.

    Example: kb-mcp approvals approve apr_0123456789abcdef01234567
    """
    record = _decide(approval_id, "approved")
    print_record(record, as_json=as_json)
    if not as_json:
        then = f"goes through if its caps allow it, until {record['expires_at']}"
        if record["blocked_by"]:
            then = f"moves no money as things are: {record['blocked_by']}"
        click.echo(f"\nThe agent's next identical call {then}.")


@approvals.command()
@click.argument("approval_id", metavar="ID")
@json_option
def deny(*, approval_id: str, as_json: bool) -> None:
    """Deny one charge or refund.

    Example: kb-mcp approvals deny apr_0123456789abcdef01234567
    """
    print_record(_decide(approval_id, "denied"), as_json=as_json)


def _decide(approval_id: str, verdict: Literal["approved", "denied"]) -> dict[str, Any]:
    async def work(opened: OpenStore) -> dict[str, Any]:
        from kb_mcp.operators.actions.operations import NotDecided, decide_approval

        outcome = await decide_approval(opened.store.ledger, approval_id, verdict, OPERATOR)
        if isinstance(outcome, NotDecided):
            if outcome.why == "missing":
                hint = "`kb-mcp approvals list` shows them."
                raise Failure(f"there is no approval {approval_id}", hint)
            by = f" by {outcome.decided_by}" if outcome.decided_by else ""
            raise Failure(f"approval {approval_id} is {outcome.why} already{by}")
        (record,) = await opened.views.approvals(approval_id=approval_id)
        return record

    return with_store(work)
