"""`kb-mcp migrate`: the store to the newest schema, and an embedded ledger to PostgreSQL.

Floor: the commands. On PostgreSQL it runs as the tables' owner; serving processes do not migrate.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kb_mcp.cli.failures import Failure
from kb_mcp.cli.opening import OpenStore, with_store
from kb_mcp.cli.progress import progress

if TYPE_CHECKING:
    from kb_mcp.settings import Settings


@click.command()
@click.option("--from", "source", metavar="sqlite:///PATH",
              help="Copy this embedded ledger into the new, empty PostgreSQL store.")  # fmt: skip
@click.option("--grant-to", metavar="ROLE",
              help="PostgreSQL: give this role what a serving process needs.")  # fmt: skip
def migrate(*, source: str | None, grant_to: str | None) -> None:
    """Bring the store to the newest schema.

    Example: kb-mcp migrate --grant-to keybrake_proxy
    """
    from kb_mcp.settings import load_settings

    settings = load_settings()
    if settings.database_path is not None:
        if source or grant_to:
            raise click.UsageError("--from and --grant-to are for a PostgreSQL store")
        number = with_store(_schema, lenient=True)
    else:
        from kb_mcp.wiring.opening import store_path

        store_path(settings)  # which says so if the driver is missing
        from kb_mcp.wiring.postgres_store import migrate_postgres

        number = migrate_postgres(settings, grant_to)
    click.echo(f"The store has schema {number}, the newest.")
    if source is not None:
        _copy(settings, source)


async def _schema(opened: OpenStore) -> int:
    return opened.store_admin.schema()


def _copy(settings: Settings, source: str) -> None:
    from dataclasses import replace

    from kb_mcp.store_files import SQLITE
    from kb_mcp.wiring.copying import copy_ledger

    # A shell's path, relative to where the command is started.
    file = Path(source.removeprefix(SQLITE)).expanduser().absolute()
    embedded = replace(settings, database_url=f"{SQLITE}{file}")
    if not source.startswith(SQLITE) or not file.is_file():
        raise Failure(f"there is no ledger at {source}", "Name its file: sqlite:///PATH.", 2)
    with progress("Copying", shown=True) as advance:
        copied = copy_ledger(settings, embedded, advance)
    click.echo(
        f"Copied {copied.rows} rows, {copied.audit_rows} of them audit rows in {copied.chains} "
        "chains: all read back equal, and every chain verifies."
    )
