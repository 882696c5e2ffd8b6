"""What an operator says about a store: that it is new, or that marks are not its own.

Floor: wing C, above the ledger. Each is one audited transaction. Nothing here is taken back by a
later walk, so that each refuses where it would hide a loss.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from kb_mcp.operators.actions.operations import NotDone
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Refs
from kb_mcp.proxy.ledger.snapshot import GAP, NEW_STORE
from kb_mcp.proxy.watching.walk import FOREIGN, StoreWalk

_LINEAGE = re.compile(r"[A-Za-z0-9_-]{1,64}")


async def confirm_new_store(walk: StoreWalk, operator: str) -> NotDone | None:
    """Take the store for a new one: objects that were made until now are not its own."""
    facts = await walk.records.facts()
    if facts.get(NEW_STORE) != "1" and not _of_any_store(facts):
        return NotDone(
            "this store is not new: what it lacks, it has lost",
            "`kb-mcp adopt --since … --apply` takes it in.",
        )
    row = AuditDraft(kind="admin", decision="confirm_new_store", agent_id=operator)
    await walk.confirm_new((row,))
    return None


async def name_foreign(walk: StoreWalk, lineage: str, operator: str) -> NotDone | None:
    """Take the objects of `lineage`, made before stores had ids, for another store's."""
    if not _LINEAGE.fullmatch(lineage):
        return NotDone(f"{lineage!r} is no lineage", "It stands in metadata[keybrake_key].")
    if await walk.records.known_lineages([lineage]):
        return NotDone(f"{lineage} is a lineage of this store: its charges are its own")
    row = AuditDraft(kind="admin", decision="foreign_lineage", agent_id=operator, note=lineage)
    facts = ((f"{FOREIGN}{lineage}", "1"),)
    await walk.ledger.transact(
        lambda _: Refs(), lambda _: (None, Changes(facts=facts, audit=(row,)))
    )
    return None


def _of_any_store(facts: Mapping[str, str]) -> bool:
    gap = facts.get(GAP)
    return bool(gap and json.loads(gap).get("any_store"))
