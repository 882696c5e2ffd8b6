"""`kb-mcp grants`: identities of a provider that stand for a vault key.

Floor: the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kb_mcp.cli.failures import Failure
from kb_mcp.cli.keys import REVOKE_WAIT_S
from kb_mcp.cli.opening import OPERATOR, OpenStore, key_ids, with_store
from kb_mcp.cli.output import json_option, print_list, print_record

if TYPE_CHECKING:
    from kb_mcp.operators.actions.grants import Removed

COLUMNS = ("id", "issuer", "match", "key_id", "label", "created_at")


@click.group()
def grants() -> None:
    """Which identities of a provider may use which vault key.

    Example: kb-mcp grants list
    """


@grants.command()
@click.option("--issuer", required=True, help="Who signs the tokens, as `iss` in them writes it.")
@click.option("--match", "matches", multiple=True, required=True,
              help="CLAIM=VALUE, or CLAIM=PREFIX*; all that are given must match.")  # fmt: skip
@click.option("--key", "key_id", required=True, shell_complete=key_ids,
              help="The vault key that these identities stand for.")  # fmt: skip
@click.option("--label", help="A note for people.")
@json_option
def add(
    *, issuer: str, matches: tuple[str, ...], key_id: str, label: str | None, as_json: bool
) -> None:
    """Let identities of a provider use a vault key, with its policy and its caps.

    Example: kb-mcp grants add --issuer https://idp.example --match sub=agent-7 --key ID
    """

    async def work(opened: OpenStore) -> dict[str, Any]:
        from kb_mcp.operators.actions.grants import NotGrantedError, add_grant, new_grant
        from kb_mcp.proxy.access.grants import MatchError
        from kb_mcp.proxy.edge.records import grant_record
        from kb_mcp.serving.machine import random_bytes

        try:
            wanted = new_grant(issuer, matches, key_id, label)
        except MatchError as error:
            raise click.BadParameter(f"{error}.") from None
        try:
            grant = await add_grant(opened.store.ledger, wanted, random_bytes, OPERATOR)
        except NotGrantedError as error:
            raise Failure(str(error), "`kb-mcp grants list` and `keys list` show them.") from None
        if opened.settings.oauth_issuers and issuer not in opened.settings.oauth_issuers:
            click.echo(f"Note: KEYBRAKE_OAUTH_ISSUERS here does not name {issuer}.", err=True)
        return grant_record(grant)

    print_record(with_store(work), as_json=as_json)


@grants.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """List the grants.

    Example: kb-mcp grants list --json
    """

    async def work(opened: OpenStore) -> list[dict[str, Any]]:
        from kb_mcp.proxy.edge.records import grant_record

        found = await opened.store.records.grants()
        return [grant_record(grant) for grant in found if grant.removed_at is None]

    empty = "No grants: vault keys alone are accepted."
    print_list(with_store(work), COLUMNS, as_json=as_json, empty=empty)


@grants.command()
@click.argument("grant_id", metavar="ID")
@json_option
def remove(*, grant_id: str, as_json: bool) -> None:
    """Remove a grant now: no host reserves anything by it after this.

    Example: kb-mcp grants remove ID
    """

    async def work(opened: OpenStore) -> Removed:
        from kb_mcp.operators.actions.grants import NoSuchGrantError, remove_grant

        store = opened.store
        try:
            return await remove_grant(
                store.ledger, store.records, grant_id, OPERATOR, REVOKE_WAIT_S
            )
        except NoSuchGrantError as error:
            raise Failure(str(error), "`kb-mcp grants list` shows them.") from None

    removed = with_store(work)
    if as_json:
        from kb_mcp.proxy.edge.records import grant_record

        counts = {"under_way": removed.under_way, "still_under_way": removed.still_under_way}
        print_record({**grant_record(removed.grant), **counts}, as_json=True)
        return
    click.echo(f"Removed {grant_id}. Sends of its key under way then: {removed.under_way}.")
    if removed.still_under_way:
        click.echo(f"{removed.still_under_way} did not end yet; recovery finds out about them.")
