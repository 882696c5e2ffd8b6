"""`kb-mcp audit`: the audit, listed, followed, exported, verified, archived.

Floor: the commands. Rows are streamed: an audit may be larger than memory.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from kb_mcp.cli import group, output
from kb_mcp.cli.opening import OpenStore, codes, in_store, key_ids
from kb_mcp.instants import how_many, rfc3339
from kb_mcp.proxy.audit import chain as audit_chain
from kb_mcp.proxy.audit.chain import Head, audit_record, export_lines, segment_end

COLUMNS = (
    "time kind decision code key_id agent_id subject method path customer_id amount currency "
    "operation_id object_id note"
)
TAIL_FIRST = 10
TAIL_EVERY_S = 1
FORMS = ("jsonl", "csv", "ecs")
audit = group("audit", "list --code spend_cap_exceeded --since 24h")


@audit.command("list")
@click.option("--key", shell_complete=key_ids, help="Only this vault key's.")
@click.option("--customer", help="Only this customer's.")
@click.option("--operation", help="Only this operation's.")
@click.option("--code", shell_complete=codes, help="Only with this code, like spend_cap_exceeded.")
@click.option("--agent", help="Only this agent's, or this operator's.")
@click.option("--session", help="Only of this session.")
@click.option("--subject", help="Only for this person or agent: 'ISSUER SUB', or 'said:NAME'.")
@click.option("--since", help="A date, time or age: 2026-06-01, 36h.")
@click.option("--until", help="A date, time or age, not included.")
@click.option("--limit", type=click.IntRange(min=1), help="The newest N; without it, all.")
@in_store("audit list --customer cus_Abc123 --limit 50")
async def list_(
    opened: OpenStore,
    /,
    *,
    since: str | None,
    until: str | None,
    limit: int | None,
    **filters: str | None,
) -> None:
    """List audit rows, in the order in which they were written."""
    wanted = filters | _between(opened, since, until)
    newest = limit is not None
    rows = opened.store.records.audit(limit=limit, newest_first=newest, **wanted)
    found = [audit_record(row) for row in rows]
    opened.out.list(found[::-1] if newest else found, COLUMNS, "No audit rows.")


@audit.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@in_store("audit tail", json=False)
async def tail(opened: OpenStore) -> None:
    """Follow the audit until interrupted."""
    records, last = opened.store.records, 0
    rows: Iterator[dict[str, Any]] = reversed(
        list(records.audit(limit=TAIL_FIRST, newest_first=True))
    )
    while True:
        for row in rows:
            last = row["row"]
            shown = (output.cell(row[name]) for name in COLUMNS.split() if row[name] is not None)
            line = next(export_lines([row], "jsonl")) if opened.out.as_json else "  ".join(shown)
            click.echo(line)
        await asyncio.sleep(TAIL_EVERY_S)
        rows = records.audit(after_row=last)


@audit.command("export")
@click.option("--format", "form", type=click.Choice(FORMS), required=True,
              help="JSON lines, CSV, or JSON lines in Elastic Common Schema.")  # fmt: skip
@click.option("--since", help="A date, time or age: 2026-06-01, 36h.")
@in_store("audit export --format csv --since 2026-06-01 > june.csv", json=False)
async def export_(opened: OpenStore, *, form: str, since: str | None) -> None:
    """Write the audit to stdout, for a spreadsheet or a SIEM."""
    records = opened.store.records
    total = records.audit_size() if since is None else None
    # A bar between the lines of a terminal would spoil both.
    with output.Output(as_json=sys.stdout.isatty()).progress("Exporting") as advance:
        rows = output.counted(records.audit(**_between(opened, since, None)), advance, total)
        for line in export_lines(rows, form):
            click.echo(line)


@audit.command()
@in_store("audit verify")
async def verify(opened: OpenStore) -> None:
    """Walk every chain, the registry of nodes and the exported heads.

    Exit code 1 when anything was changed, removed or lost; the first broken row is named. That the
    last rows of a chain were cut off shows by its exported head alone: heads lie beside the store.
    """
    outcome = verified(opened)[0]
    rows, chains, heads = outcome.rows, len(outcome.ends), outcome.heads
    if opened.out.as_json:
        told = {"rows": rows, "chains": chains, "heads": heads, "broken": outcome.breaks}
        opened.out.json({"ok": not outcome.breaks, **told})
    for each in outcome.breaks:
        output.say_failure(str(each), None)
    if outcome.breaks:
        output.found_something()
    if not opened.out.as_json:
        click.echo(f"The audit holds. Rows: {rows}. Chains: {chains}. Held against heads: {heads}.")
    if heads < chains:
        none = f"Warning: chains without an exported head: {chains - heads} of {chains}."
        click.echo(f"{none} Whether their last rows were cut off cannot be told.", err=True)


@audit.command()
@click.option("--before", required=True, help="Rows before this date, time or age.")
@click.option("--to", "file", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="A new file, JSON lines.")  # fmt: skip
@in_store("audit archive --before 90d --to audit-2026-q2.jsonl")
async def archive(opened: OpenStore, *, before: str, file: Path) -> None:
    """Move verified old rows out of the store into a file.

    The last row of each process stays, so that a lost tail still shows.
    """
    outcome, heads = verified(opened)
    if outcome.breaks:
        why = f"nothing was archived: {outcome.breaks[0]}"
        raise output.Failure(why, "`kb-mcp audit verify` says more.")
    moment = rfc3339(opened.past_ms(before))
    chain = opened.store.records.chain
    ends = {
        node: last
        for node, end in outcome.ends.items()
        if (last := segment_end(chain(node), moment, heads.get(node), end)) is not None
    }
    with opened.out.progress("Archiving") as advance:
        written = _write_segments(opened, ends, file, advance) if ends else 0
    if written:
        await opened.note("archive", f"{how_many(written, 'row')} to {file.name}")
        opened.store_admin.drop_segments(ends)
    done = {"rows": written, "chains": len(ends), "file": str(file) if written else None}
    moved = f"Moved {how_many(written, 'row')} of {how_many(len(ends), 'chain')} to {file}."
    opened.out.done(done, moved if written else "Nothing is that old.")


def _between(opened: OpenStore, since: str | None, until: str | None) -> dict[str, Any]:
    given = {"since": since, "until": until}
    return {name: rfc3339(opened.past_ms(text)) for name, text in given.items() if text is not None}


def verified(opened: OpenStore) -> tuple[audit_chain.Verification, Mapping[str, Head]]:
    """Verify the whole audit; return the outcome and the exported heads it was held against."""
    # The heads first: the chains only grow meanwhile.
    records, heads = opened.store.records, opened.store.heads.exported()
    with opened.out.progress("Verifying") as advance:
        walked, total = itertools.count(1), records.audit_size()

        def chain(node: str) -> Iterator[dict[str, Any]]:
            for row in records.chain(node):
                if (done := next(walked)) % output.STEP == 0:
                    advance(done, total)
                yield row

        known, archived = (records.nodes(), records.writers()), opened.store_admin.archived()
        outcome = audit_chain.verify_audit(*known, chain, opened.store.chain_key, heads, archived)
    return outcome, heads


def _write_segments(
    opened: OpenStore, ends: Mapping[str, Head], file: Path, advance: output.Advance
) -> int:
    """Write the rows up to each end to a new file, and see it on the disk. Raises: Failure."""
    count = 0
    try:
        with open(file, "x", encoding="utf-8", opener=partial(os.open, mode=0o600)) as stream:
            rows = output.counted(_segments(opened, ends), advance, None)
            for line in export_lines(rows, "jsonl"):
                stream.write(f"{line}\n")
                count += 1
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError:
        raise output.Failure(
            f"{file} exists", "Name a new file: archives are never overwritten."
        ) from None
    except OSError as error:
        raise output.Failure(
            f"cannot write {file}: {error.strerror}", "Nothing was archived."
        ) from None
    return count


def _segments(opened: OpenStore, ends: Mapping[str, Head]) -> Iterator[dict[str, Any]]:
    for node, end in ends.items():
        for row in opened.store.records.chain(node):
            if row["seq"] > end.seq:
                break
            yield row
