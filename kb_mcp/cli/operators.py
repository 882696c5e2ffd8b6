"""`kb-mcp operators`: who may use the admin API and the dashboard.

Floor: the commands. A token is printed by add alone, once; the store keeps its hash.
"""

from __future__ import annotations

import re
from typing import Any

import click

from kb_mcp.cli.failures import Failure
from kb_mcp.cli.opening import OPERATOR, OpenStore, with_store
from kb_mcp.cli.output import json_option, print_json, print_list

TOKEN_BYTES = 24
# "admin" is the holder of KEYBRAKE_ADMIN_TOKEN, and "cli" is this command line in the audit.
TAKEN = frozenset({"admin", "cli", "first-run"})
_NAME = re.compile(r"[a-z][a-z0-9._-]{0,31}")


@click.group()
def operators() -> None:
    """People who may use the dashboard and the admin API; the audit names them.

    Example: kb-mcp operators add maria
    """


@operators.command()
@click.argument("name")
@json_option
def add(*, name: str, as_json: bool) -> None:
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
        await _note(opened, "operator_add", name)
        token = f"kbo_{random_bytes(TOKEN_BYTES).hex()}"
        if not opened.store_admin.add_operator(Operator(name, hash_token(token), opened.now())):
            raise Failure(f"there is an operator {name} already", "Remove it first.")
        return token

    token = with_store(work)
    if as_json:
        print_json({"name": name, "token": token})
    else:
        click.echo(f"Operator {name}. The token is shown this once:\n\n  {token}\n")


@operators.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """List the operators.

    Example: kb-mcp operators list
    """

    async def work(opened: OpenStore) -> list[dict[str, Any]]:
        from kb_mcp.instants import rfc3339

        return [
            {"name": each.name, "created_at": rfc3339(each.created_at)}
            for each in opened.store_admin.operators()
        ]

    empty = "None but the holder of KEYBRAKE_ADMIN_TOKEN."
    print_list(with_store(work), ("name", "created_at"), as_json=as_json, empty=empty)


@operators.command()
@click.argument("name")
def remove(*, name: str) -> None:
    """Remove an operator; the token stops working at once.

    Example: kb-mcp operators remove maria
    """

    async def work(opened: OpenStore) -> None:
        if name not in opened.store_admin.operator_hashes():
            raise Failure(f"there is no operator {name}", "`kb-mcp operators list` shows them.")
        await _note(opened, "operator_remove", name)
        opened.store_admin.remove_operator(name)

    with_store(work)
    click.echo(f"Removed {name}.")


async def _note(opened: OpenStore, decision: str, name: str) -> None:
    from kb_mcp.operators.actions.operations import note
    from kb_mcp.proxy.ledger.records import AuditDraft

    row = AuditDraft(kind="admin", decision=decision, agent_id=OPERATOR, note=name)
    await note(opened.store.ledger, row)
