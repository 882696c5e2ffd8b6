"""What limits every process is a row of the store: it holds from its commit, in all of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kb_mcp.proxy.ledger.records import Changes, Refs, State
from kb_mcp.proxy.ledger.snapshot import StoreSettings
from kb_mcp.proxy.stores.binding import BindingError, Binds
from kb_mcp.settings import load_settings
from kb_mcp.wiring.stores import Store, open_store
from tests.proxy.stores.conftest import Open, Run
from tests.proxy.stores.test_conformance import attempt, operation, read, write

NOW, HOUR_MS, DAY_MS = 1_795_482_000_000, 3_600_000, 86_400_000
TIMES = {"KEYBRAKE_UPSTREAM_TIMEOUT": "10", "KEYBRAKE_RECOVERY_GRACE": "60"}
BOUND = {"account", "mode"}
LIMITS = {"ceilings", "upstream_timeout_ms", "recovery_grace_ms"}


async def decided_by(store: Store) -> StoreSettings:
    """Return the settings that a decision of this process reads now."""
    return await store.ledger.transact(
        lambda _: Refs(), lambda snapshot: (snapshot.settings, Changes())
    )


def set_facts(store: Store, **facts: Any) -> None:
    admin = store.open_store_admin()
    admin.set_facts({name: json.dumps(value) for name, value in facts.items()})
    admin.close()


def facts(store: Store) -> dict[str, str]:
    admin = store.open_store_admin()
    found = admin.facts()
    admin.close()
    return {name: value for name, value in found.items() if name in BOUND | LIMITS}


def test_a_ceiling_holds_in_every_process_from_its_commit(open_one: Open, run: Run) -> None:
    one, two = open_one(), open_one()
    assert run(decided_by(two)).ceilings == {}
    set_facts(one, ceilings={"usd": 5000})
    assert run(decided_by(two)).ceilings == {"usd": 5000}
    assert two.ledger.settings.ceilings == {"usd": 5000}
    set_facts(one, ceilings={})
    assert run(decided_by(two)).ceilings == {}


def test_a_longer_grace_holds_at_once_and_a_shorter_one_where_a_process_starts(
    open_one: Open, run: Run
) -> None:
    one, two = open_one(), open_one()
    set_facts(one, recovery_grace_ms=900_000)
    assert run(decided_by(two)).recovery_grace_ms == 900_000
    set_facts(one, recovery_grace_ms=60_000)
    assert run(decided_by(two)).recovery_grace_ms == 600_000
    assert run(decided_by(open_one())).recovery_grace_ms == 60_000


@pytest.mark.parametrize(("binds", "written"), [(Binds.NOTHING, set()), (Binds.ACCOUNT, BOUND)])
def test_what_serves_nobody_leaves_the_times_to_the_first_process_that_serves(
    open_one: Open, environ: dict[str, str], run: Run, binds: Binds, written: set[str]
) -> None:
    command = open_store(load_settings(environ), binds=binds)
    assert facts(command).keys() == written
    run(command.close())
    serving = open_one(**TIMES)
    assert facts(serving).keys() == BOUND | LIMITS
    assert run(decided_by(serving)).recovery_grace_ms == 60_000
    with pytest.raises(BindingError, match="upstream_timeout_ms"):
        open_one(**TIMES | {"KEYBRAKE_UPSTREAM_TIMEOUT": "12"})


def test_what_an_operator_set_before_anything_served_holds_for_the_first_that_does(
    open_one: Open, environ: dict[str, str], run: Run
) -> None:
    command = open_store(load_settings(environ), binds=Binds.NOTHING)
    set_facts(command, ceilings={"usd": 5000})
    run(command.close())
    with pytest.raises(BindingError, match="ceilings"):
        open_one(KEYBRAKE_ACCOUNT_DAILY_CAP="100.00usd")
    assert run(decided_by(open_one())).ceilings == {"usd": 5000}


def test_a_command_for_another_account_is_refused_by_a_store_that_serves(
    open_one: Open, environ: dict[str, str]
) -> None:
    open_one(KEYBRAKE_ACCOUNT="acct_one")
    other = load_settings(environ | {"KEYBRAKE_ACCOUNT": "acct_two"})
    with pytest.raises(BindingError, match="acct_one"):
        open_store(other, binds=Binds.NOTHING)


def test_what_was_dated_later_than_an_operator_says_it_is_is_dated_now(
    open_one: Open, run: Run
) -> None:
    """A clock that was 40 days ahead must not keep an open operation unread for 40 days."""
    store, now = open_one(), NOW
    ahead, soon = now + 40 * DAY_MS, now + 30_000
    held = {"state": State.UNKNOWN, "final": True, "lease_owner": "gone"}
    rows = (
        operation(1, **held, next_read_at=ahead, lease_until=ahead),
        operation(2, **held, next_read_at=now - 5, lease_until=soon),
        operation(3, state=State.VOIDED, voided_at=ahead, next_read_at=ahead, empty_listings=1),
        operation(4, next_read_at=None),
        operation(5, final=False, lease_owner="gone", next_read_at=ahead, lease_until=ahead),
    )
    sends = (attempt(1, last_sent_at=ahead), attempt(2, last_sent_at=now - 9),
             attempt(3, last_sent_at=ahead), attempt(4, last_sent_at=ahead),
             attempt(5, last_sent_at=ahead))  # fmt: skip
    run(write(store, Changes(operations=rows, attempts=sends)))
    admin = store.open_store_admin()
    admin.confirm_clock({"clock_confirmed": str(now)}, now)
    assert admin.facts()["clock_confirmed"] == str(now)
    admin.close()
    found = run(read(store, Refs(operations=frozenset(each.id for each in rows))))
    dated = {
        number: (each.next_read_at, each.lease_until, each.voided_at)
        for number, each in enumerate((found.operations[row.id] for row in rows), 1)
    }
    assert dated == {
        1: (now, now + 120_000, None),
        2: (now - 5, soon, None),
        3: (now + 25 * HOUR_MS, rows[2].lease_until, now),
        4: (None, rows[3].lease_until, None),
        5: (now, now + 120_000, None),
    }
    last = [found.attempts[row.id, 1].last_sent_at for row in rows]
    assert last == [now, now - 9, now, ahead, now]  # what is settled stays as it was written
