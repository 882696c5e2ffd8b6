"""Vault keys: issue, rotate, revoke, unfreeze. Each is one audited transaction.

Floor: operators, above the ledger. A revocation writes the key's row, which every reservation
locks: none commits after it, on any process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.policy_files import dump_policy
from kb_mcp.proxy.access.tokens import Minted, Mode, mint
from kb_mcp.proxy.access.uncapped import is_uncapped
from kb_mcp.proxy.edge.records import Records
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import (
    AuditDraft,
    Changes,
    KeyId,
    Lineage,
    LineageId,
    Refs,
    VaultKey,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import counts_at

POLL_S = 0.05


class NoSuchKeyError(Exception):
    """There is no vault key with this id."""


class KeyEndedError(Exception):
    """A vault key that can have no successor: revoked, rotated before, or past its policy."""


class CapRequiredError(Exception):
    """A new key would move money without a cap over time, and nobody said that it shall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a new key shall be; `expires_at` in ms UTC.

    `uncapped` says, in so many words, that it may move money without a cap over time.
    """

    policy: Policy
    mode: Mode
    label: str | None = None
    agent: str | None = None
    expires_at: int | None = None
    uncapped: bool = False


@dataclass(frozen=True, slots=True)
class Revoked:
    """A revocation, and the sends that were under way when it committed."""

    key: VaultKey
    under_way: int
    still_under_way: int


async def issue_key(
    ledger: Ledger, wanted: Wanted, random_bytes: Callable[[int], bytes], operator: str
) -> tuple[VaultKey, Minted]:
    """Mint and store a key; the token is in the result and nowhere else.

    Raises: CapRequiredError.
    """
    uncapped = is_uncapped(wanted.policy)
    if uncapped and not wanted.uncapped:
        raise CapRequiredError("This key would move money without a cap per day, month or customer")
    minted = mint(wanted.mode, random_bytes)

    def step(snapshot: Snapshot) -> tuple[VaultKey, Changes]:
        key = _new_key(wanted, minted, LineageId(minted.id), snapshot.now)
        row = _row("issue", key, operator, note="uncapped" if uncapped else None)
        return key, Changes(keys=(key,), lineages=(Lineage(key.lineage_id),), audit=(row,))

    return await ledger.transact(lambda _: Refs(), step), minted


async def rotate_key(
    ledger: Ledger,
    key_id: KeyId,
    overlap_ms: int,
    random_bytes: Callable[[int], bytes],
    operator: str,
) -> tuple[VaultKey, Minted]:
    """Mint the successor of `key_id`: same policy and lineage, so caps and freezes go on.

    The old key expires after `overlap_ms`, the new one no later than its policy. Raises:
    NoSuchKeyError, KeyEndedError.
    """

    def step(snapshot: Snapshot) -> tuple[tuple[VaultKey, Minted], Changes]:
        old = _key(snapshot, key_id)
        ended = _ended(old, snapshot.now)
        if ended is not None:
            raise KeyEndedError(f"vault key {key_id} {ended}")
        minted = mint("live" if old.mode == "live" else "test", random_bytes)
        successor = replace(
            old, id=minted.id, token_hash=minted.token_hash, created_at=snapshot.now,
            expires_at=_successor_ends(old, snapshot.now),
            revoked_at=None, revoke_reason=None, last_used_at=None, rotated_to=None,
        )  # fmt: skip
        ends = snapshot.now + overlap_ms
        expires_at = ends if old.expires_at is None else min(ends, old.expires_at)
        retired = replace(old, expires_at=expires_at, rotated_to=minted.id)
        rows = (_row("rotate", old, operator, note=f"to {minted.id}"),)
        return (successor, minted), Changes(keys=(retired, successor), audit=rows)

    return await ledger.transact(lambda _: _refs(key_id), step)


async def revoke_key(
    ledger: Ledger, records: Records, key_id: KeyId, reason: str | None, operator: str, wait_s: int
) -> Revoked:
    """Revoke a key now, and wait at most `wait_s` for its sends under way to end.

    Raises: NoSuchKeyError.
    """

    def step(snapshot: Snapshot) -> tuple[VaultKey, Changes]:
        key = _key(snapshot, key_id)
        if key.revoked_at is None:
            key = replace(key, revoked_at=snapshot.now, revoke_reason=reason)
        return key, Changes(keys=(key,), audit=(_row("revoke", key, operator, note=reason),))

    key = await ledger.transact(lambda _: _refs(key_id), step)
    under_way = left = await sends_under_way(records, key.lineage_id)
    try:
        async with asyncio.timeout(wait_s):
            while left:
                await asyncio.sleep(POLL_S)
                left = await sends_under_way(records, key.lineage_id)
    except TimeoutError:
        pass
    return Revoked(key, under_way, left)


async def unfreeze_key(ledger: Ledger, key_id: KeyId, reason: str, operator: str) -> Lineage:
    """Thaw the lineage of `key_id`, and start its count of the day's declines anew.

    Raises: NoSuchKeyError.
    """
    known = await ledger.find_key(key_id)
    if known is None:
        raise NoSuchKeyError(f"there is no vault key {key_id}")
    lineage_id = known[0].lineage_id

    def step(snapshot: Snapshot) -> tuple[Lineage, Changes]:
        key = _key(snapshot, key_id)
        thawed = replace(snapshot.lineage(lineage_id), frozen_at=None, frozen_reason=None)
        today = snapshot.window(counts_at(snapshot.now, lineage_id))
        row = _row("unfreeze", key, operator, note=reason)
        anew = (replace(today, declines=0),) if today.declines else ()
        return thawed, Changes(lineages=(thawed,), windows=anew, audit=(row,))

    return await ledger.transact(
        lambda now: replace(_refs(key_id), windows=frozenset({counts_at(now, lineage_id)})),
        step,
    )


async def sends_under_way(records: Records, lineage_id: str) -> int:
    """Return how many sends of a lineage's keys are under way now."""
    found = await records.operations(state="reserved", lineage_id=lineage_id)
    return sum(operation.lease_owner is not None for operation, _ in found)


def _key(snapshot: Snapshot, key_id: KeyId) -> VaultKey:
    key = snapshot.keys.get(key_id)
    if key is None:
        raise NoSuchKeyError(f"there is no vault key {key_id}")
    return key


def _refs(key_id: KeyId) -> Refs:
    return Refs(keys=frozenset({key_id}))


def _ended(key: VaultKey, now: int) -> str | None:
    """Say why `key` can have no successor, or return None."""
    if key.revoked_at is not None:
        return "was revoked: issue a new one"
    if key.rotated_to is not None:
        return f"was rotated to {key.rotated_to}: rotate that one"
    ends = _policy_ends(policy_of(key.policy))
    if ends is not None and ends <= now:
        return "has a policy that ended: issue a new one under another policy"
    return None


def _successor_ends(old: VaultKey, now: int) -> int | None:
    """Return when a successor made `now` expires: it lives as long as `old`, within the policy."""
    lasts = None if old.expires_at is None else now + old.expires_at - old.created_at
    ends = (lasts, _policy_ends(policy_of(old.policy)))
    return min((each for each in ends if each is not None), default=None)


def _policy_ends(policy: Policy) -> int | None:
    ends = policy.expires_at
    return None if ends is None else int(ends.timestamp()) * 1000


def _new_key(wanted: Wanted, minted: Minted, lineage: LineageId, now: int) -> VaultKey:
    ends = (wanted.expires_at, _policy_ends(wanted.policy))
    expiries = [each for each in ends if each is not None]
    return VaultKey(
        id=minted.id,
        lineage_id=lineage,
        token_hash=minted.token_hash,
        mode=wanted.mode,
        role=wanted.policy.role,
        label=wanted.label,
        agent=wanted.agent,
        policy=dump_policy(wanted.policy),
        created_at=now,
        expires_at=min(expiries, default=None),
    )


def _row(decision: str, key: VaultKey, operator: str, note: str | None = None) -> AuditDraft:
    return AuditDraft(
        kind="admin", decision=decision, key_id=key.id, role=key.role, agent_id=operator, note=note
    )
