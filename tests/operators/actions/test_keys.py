"""Keys and their successors: no longer than the policy, one successor each, none after the end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.operators.actions.keys import (
    CapRequiredError,
    KeyEndedError,
    NewKey,
    issue_key,
    revoke_key,
    rotate_key,
)
from kb_mcp.proxy.access.policy import Policy, missing_caps
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.ledger.records import KeyId, VaultKey
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Moves
from kb_mcp.serving.machine import random_bytes
from tests.in_process_proxy import InProcessProxy

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def issue(in_process: InProcessProxy, policy_hours: int | None, **wanted: Any) -> VaultKey:
    """Issue a key under a policy that ends in some hours."""
    policy = built_in("audit")
    if policy_hours is not None:
        now = datetime.fromtimestamp(in_process.proxy.store.clock.now(0) / 1000, UTC)
        ends = now + timedelta(hours=policy_hours)
        policy = policy.model_copy(update={"expires_at": ends})
    asked = NewKey(policy=policy, mode="test", **wanted)
    ledger = in_process.proxy.store.ledger
    return in_process.run(issue_key(ledger, asked, random_bytes, "ann"))[0]


def rotate(in_process: InProcessProxy, key: VaultKey, overlap_ms: int = HOUR_MS) -> VaultKey:
    ledger = in_process.proxy.store.ledger
    return in_process.run(rotate_key(ledger, key.id, overlap_ms, random_bytes, "ann"))[0]


def turn(in_process: InProcessProxy, hours: int) -> None:
    in_process.turn_clock(hours * 3600)
    in_process.run(in_process.proxy.app.pipeline.follow())


def test_no_successor_outlives_the_policy_however_often_a_key_is_rotated(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = issue(in_process, 10)
        ends = key.expires_at
        for _ in range(4):
            turn(in_process, 2)
            key = rotate(in_process, key)
            assert key.expires_at == ends
        turn(in_process, 3)
        with pytest.raises(KeyEndedError, match="policy that ended"):
            rotate(in_process, key)


def test_a_successor_lives_as_long_as_its_key_where_the_policy_lasts(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        now = in_process.proxy.store.clock.now(0)
        key = issue(in_process, 100, expires_at=now + DAY_MS)
        turn(in_process, 20)
        successor = rotate(in_process, key)
        assert successor.expires_at is not None
        assert key.expires_at is not None
        assert successor.expires_at - successor.created_at == key.expires_at - key.created_at
        assert rotate(in_process, issue(in_process, None)).expires_at is None


def test_a_key_has_one_successor_and_a_revoked_one_none(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key, revoked = issue(in_process, None), issue(in_process, None)
        successor = rotate(in_process, key)
        with pytest.raises(KeyEndedError, match=successor.id):
            rotate(in_process, key)
        store = in_process.proxy.store
        in_process.run(revoke_key(store.ledger, store.records, revoked.id, None, "ann", 0))
        with pytest.raises(KeyEndedError, match="revoked"):
            rotate(in_process, revoked)


def test_no_key_without_a_cap_is_stored_that_nobody_asked_for(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        wanted = NewKey(policy=built_in("billing"), mode="test")
        ledger = in_process.proxy.store.ledger
        with pytest.raises(CapRequiredError, match="per day, month or customer"):
            in_process.run(issue_key(ledger, wanted, random_bytes, "ann"))
        assert in_process.run(in_process.proxy.store.records.keys()) == []


def test_a_key_without_a_cap_can_be_rotated(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        found = in_process.run(in_process.proxy.store.ledger.find_key(KeyId(in_process.issue().id)))
        assert found is not None
        assert rotate(in_process, found[0]).policy == found[0].policy


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS))
def test_every_write_that_may_cost_money_needs_a_cap(endpoint: str) -> None:
    policy = Policy.model_validate({"role": "x", "allow": (endpoint,)})
    reads = ENDPOINTS[endpoint].moves is Moves.READS
    assert not (reads and missing_caps(policy))
    if not (reads or endpoint.endswith(("/*", "/cancel"))):
        assert missing_caps(policy)
