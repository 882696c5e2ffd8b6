"""`kb-mcp operators`, `grants`, `approvals`: who decides, whose key an identity has, and a yes.

Floor: the commands. An operator's token is printed by add alone, once; the store keeps its hash.
"""

from __future__ import annotations

import re

import click

from kb_mcp.cli import group
from kb_mcp.cli.keys import REVOKE_WAIT_S
from kb_mcp.cli.opening import OPERATOR, OpenStore, in_store, key_ids
from kb_mcp.cli.output import Failure, read_by
from kb_mcp.instants import rfc3339
from kb_mcp.operators.actions.grants import NewGrant, add_grant, remove_grant
from kb_mcp.operators.actions.operations import NotDecided, Verdict, decide_approval
from kb_mcp.proxy.access.tokens import hash_token
from kb_mcp.proxy.edge.records import Record, grant_record
from kb_mcp.proxy.stores.database import Operator
from kb_mcp.serving.machine import random_bytes

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


APPROVAL_COLUMNS = (
    "id state endpoint customer_id billing_period reference charge_id invoice_id amount currency "
    "payment_method key_id expires_at blocked_by"
)
_approval = click.argument("approval_id", metavar="ID")
approvals = group("approvals", "list")


@approvals.command("list")
@click.option("--state", type=click.Choice(["pending", "approved", "denied", "used", "expired"]),
              help="Only those in this state.")  # fmt: skip
@in_store("approvals list --state pending")
async def approval_list(opened: OpenStore, *, state: str | None) -> None:
    """List approvals, newest first."""
    found = await opened.views.approvals(state=state)
    opened.out.list(found, APPROVAL_COLUMNS, "Nothing waits for approval.")


@approvals.command()
@_approval
@in_store("approvals approve apr_0123456789abcdef01234567")
async def approve(opened: OpenStore, *, approval_id: str) -> None:
    """Approve one charge or refund, once: the agent's next identical call goes through."""
    record = await _decide(opened, approval_id, "approved")
    if not opened.out.as_json:
        then = f"goes through if its caps allow it, until {record['expires_at']}"
        if record["blocked_by"]:
            then = f"moves no money as things are: {record['blocked_by']}"
        click.echo(f"\nThe agent's next identical call {then}.")


@approvals.command()
@_approval
@in_store("approvals deny apr_0123456789abcdef01234567")
async def deny(opened: OpenStore, *, approval_id: str) -> None:
    """Deny one charge or refund."""
    await _decide(opened, approval_id, "denied")


async def _decide(opened: OpenStore, approval_id: str, verdict: Verdict) -> Record:
    """Decide, print the approval as it is then, and return it. Raises: Failure."""
    outcome = await decide_approval(opened.store.ledger, approval_id, verdict, OPERATOR)
    if isinstance(outcome, NotDecided):
        if outcome.why == "missing":
            hint = "`kb-mcp approvals list` shows them."
            raise Failure(f"there is no approval {approval_id}", hint)
        by = f" by {outcome.decided_by}" if outcome.decided_by else ""
        raise Failure(f"approval {approval_id} is {outcome.why} already{by}")
    (record,) = await opened.views.approvals(approval_id=approval_id)
    opened.out.record(record)
    return record
