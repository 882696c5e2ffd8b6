"""Grants: add and remove. Each is one audited transaction.

Floor: operators, above the ledger. A removal holds the lineage of the grant's key, which every
reservation holds, too: none commits after it, on any process, as with a revoked key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from kb_mcp.environment import is_address
from kb_mcp.operators.actions.keys import REASON_MAX, TEXT_MAX, Counts, await_sends, clean_reason
from kb_mcp.operators.actions.operations import admin_row
from kb_mcp.operators.reports.views import NoSuchKeyError
from kb_mcp.proxy.access import grants as rules
from kb_mcp.proxy.access.authenticate import newest_key
from kb_mcp.proxy.access.tokens import refuse_dead_key
from kb_mcp.proxy.errors.refusals import Code, refuse
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Grant, KeyId, Refs
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.reads import StoreReads

ID_BYTES = 10


class NotGrantedError(Exception):
    """A grant that cannot be; the message says why."""


class NoSuchGrantError(Exception):
    """There is no grant with this id."""


@dataclass(frozen=True, slots=True)
class NewGrant:
    """What a grant shall be, as it is typed; `matches` are texts like `sub=agent-*`."""

    issuer: str
    matches: Sequence[str]
    key_id: str
    label: str | None = None


async def find_problems(
    ledger: Ledger, grants: Iterable[Grant], issuers: Sequence[str], now: int
) -> list[str]:
    """Say of which grants no identity is let in at `now` (ms), and what to do about each."""
    problems = []
    for grant in grants:
        undo = f"`kb-mcp grants remove {grant.id}`"
        key = await newest_key(ledger, grant)
        dead = refuse(Code.VAULT_KEY_REVOKED) if key is None else refuse_dead_key(key, now)
        if dead is not None:
            how = "revoked" if dead.code is Code.VAULT_KEY_REVOKED else "expired"
            problems.append(
                f"{grant.id} stands for the vault key {grant.key_id}, which is {how}: {undo}, and "
                "`kb-mcp grants add` with a key that serves"
            )
        if grant.issuer not in issuers:
            problems.append(
                f"{grant.id} is of the issuer {grant.issuer}, which KEYBRAKE_OAUTH_ISSUERS does "
                f"not name: add it there, or {undo}"
            )
    return problems


async def add_grant(
    ledger: Ledger, wanted: NewGrant, random_bytes: Callable[[int], bytes], operator: str
) -> Grant:
    """Let the identities that `wanted` names stand for its vault key.

    Raises: MatchError, NoSuchKeyError, NotGrantedError.
    """
    if not is_address(wanted.issuer):
        raise rules.MatchError("an issuer is an http(s) address, as `iss` in its tokens writes it")
    if not wanted.key_id.isprintable():
        raise NoSuchKeyError(wanted.key_id)
    claims, key_id = rules.read_matches(wanted.matches), KeyId(wanted.key_id)
    refs = Refs(keys=frozenset({key_id}), issuers=frozenset({wanted.issuer}))
    grant_id = f"grt_{random_bytes(ID_BYTES).hex()}"

    def step(snapshot: Snapshot) -> tuple[Grant, Changes]:
        key = snapshot.keys.get(key_id)
        if key is None:
            raise NoSuchKeyError(wanted.key_id)
        if refuse_dead_key(key, snapshot.now) is not None:
            raise NotGrantedError(f"vault key {key.id} was revoked or has expired")
        if key.rotated_to is not None:
            raise NotGrantedError(f"vault key {key.id} was rotated: name {key.rotated_to}")
        held = (each for each in snapshot.grants.values() if each.removed_at is None)
        other = rules.overlapping((each for each in held if each.issuer == wanted.issuer), claims)
        if other is not None:
            raise NotGrantedError(f"grant {other.id} matches some of the same identities")
        grant = Grant(
            id=grant_id,
            issuer=wanted.issuer,
            claims=rules.write_claims(claims),
            key_id=key.id,
            label=clean_reason(wanted.label, TEXT_MAX),
            created_at=snapshot.now,
        )
        return grant, Changes(grants=(grant,), audit=(_row(operator, "grant_add", grant),))

    return await ledger.transact(lambda _: refs, step)


async def remove_grant(
    ledger: Ledger, records: StoreReads, grant_id: str, operator: str, wait_s: int
) -> tuple[Grant, Counts]:
    """Remove a grant now; return it, and what became of the sends of its key within `wait_s`.

    Raises: NoSuchGrantError.
    """
    known = next((each for each in await records.grants() if each.id == grant_id), None)
    if known is None:
        raise NoSuchGrantError(f"there is no grant {grant_id}")
    refs = Refs(keys=frozenset({known.key_id}), grants=frozenset({grant_id}))

    def step(snapshot: Snapshot) -> tuple[Grant, Changes]:
        grant = snapshot.grants[grant_id]
        if grant.removed_at is None:
            grant = replace(grant, removed_at=snapshot.now)
        return grant, Changes(grants=(grant,), audit=(_row(operator, "grant_remove", grant),))

    grant = await ledger.transact(lambda _: refs, step)
    found = await ledger.find_key(grant.key_id)
    lineage = "" if found is None else found[0].lineage_id
    return grant, await await_sends(records, lineage, wait_s)


def _row(operator: str, decision: str, grant: Grant) -> AuditDraft:
    claims = " ".join(f"{name}={value}" for name, value in rules.claims_of(grant.claims).items())
    note = f"{grant.id} {grant.issuer} {claims}"[:REASON_MAX]
    return admin_row(operator, decision, note, key_id=grant.key_id)
